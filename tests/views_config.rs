//! `kscope config` against /proc/config.gz.

mod common;

use common::session::Session;
use common::{Place, finish, kernels};

#[test]
fn it_is_what_the_guest_has_in_proc() {
    for kernel in kernels() {
        let mut guest = Session::start(kernel, &[]);
        let in_guest = guest.ask("zcat /proc/config.gz");
        assert!(in_guest.contains("\nCONFIG_UML=y\n"), "{in_guest}");
        assert_eq!(guest.kscope(&["config"]).expect(0).text(), in_guest);
        let lines = |text: &str, part: &str| {
            let lines = text.lines().filter(|line| line.contains(part));
            lines.map(|line| format!("{line}\n")).collect::<String>()
        };
        let found = guest.kscope(&["config", "Hz"]).expect(0).text();
        assert_eq!(found, lines(&in_guest, "HZ"));
        assert!(!found.is_empty());
        let named = ["config", "CONFIG_HZ", "CONFIG_UML=y", "CONFIG_64BIT=n"];
        let found = guest.kscope(&named).expect(1).says(&["`CONFIG_64BIT=n`"]);
        let hz = lines(&in_guest, "CONFIG_HZ=");
        assert_eq!(
            found.text(),
            match in_guest.find(&hz) < in_guest.find("CONFIG_UML=y") {
                true => format!("{hz}CONFIG_UML=y\n"),
                false => format!("CONFIG_UML=y\n{hz}"),
            }
        );
        // As JSON, every option and its value.
        let options = guest.view(&["config"]);
        let options = options.as_array().expect("an array");
        let count = in_guest
            .lines()
            .filter(|l| l.starts_with("CONFIG_") || l.ends_with(" is not set"));
        assert_eq!(options.len(), count.count());
        for option in options {
            let text = |key: &str| option[key].as_str().expect("text").to_owned();
            let (name, value) = (text("name"), text("value"));
            let line = match text("kind").as_str() {
                "tristate" if value == "n" => format!("# {name} is not set\n"),
                "string" => format!("{name}=\"{value}\"\n"),
                _ => format!("{name}={value}\n"),
            };
            assert!(in_guest.contains(&line), "{line}");
        }
    }
}

#[test]
fn a_first_word_that_names_no_guest_is_searched_for() {
    let guest = Session::start(&kernels()[0], &[]);
    let mut kscope = guest.place().kscope();
    let found = finish(kscope.args(["config", "CONFIG_UML"])).expect(0);
    assert_eq!(found.text(), "CONFIG_UML=y\n");
    let mut kscope = guest.place().kscope();
    finish(kscope.args(["config", "--guest", "other", "uml"]))
        .expect(96)
        .says(&["other"]);
    let nowhere = Place::new();
    finish(nowhere.kscope().args(["config", "uml"])).expect(96);
}
