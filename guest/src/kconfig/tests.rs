use super::*;

fn fragment(text: &str) -> Fragment {
    Fragment::parse("test", text).unwrap()
}

fn nothing_known(_: &BTreeSet<&str>) -> BTreeMap<String, String> {
    BTreeMap::new()
}

fn all_known(names: &BTreeSet<&str>) -> BTreeMap<String, String> {
    names
        .iter()
        .map(|name| ((*name).to_owned(), "init/Kconfig:7".to_owned()))
        .collect()
}

#[test]
fn parses_what_kconfig_writes() {
    let f = fragment(
        "# a comment\n\nCONFIG_A=y\n# CONFIG_B is not set\nCONFIG_S=\"fd:0,fd:1\"\nCONFIG_C=n\n",
    );
    let got: Vec<(&str, &str)> = f
        .options()
        .map(|(name, request)| (name, request.value.as_str()))
        .collect();
    assert_eq!(
        got,
        [
            ("CONFIG_A", "y"),
            ("CONFIG_B", "n"),
            ("CONFIG_C", "n"),
            ("CONFIG_S", "\"fd:0,fd:1\"")
        ]
    );
    assert_eq!(
        f.to_text(),
        "CONFIG_A=y\n# CONFIG_B is not set\n# CONFIG_C is not set\nCONFIG_S=\"fd:0,fd:1\"\n"
    );
}

#[test]
fn refuses_what_is_no_option() {
    for text in ["FOO=y", "CONFIG_A", "CONFIG_A =y", "config a"] {
        let error = Fragment::parse("mine.config", &format!("CONFIG_OK=y\n{text}\n")).unwrap_err();
        assert_eq!((error.line, error.text.as_str()), (2, text));
        assert!(error.to_string().contains("mine.config:2"), "{error}");
    }
}

#[test]
fn later_fragments_win() {
    let mut f = fragment("CONFIG_A=y\nCONFIG_B=y\n");
    f.overlay(Fragment::parse("later", "# CONFIG_A is not set\n").unwrap());
    assert_eq!(f.to_text(), "# CONFIG_A is not set\nCONFIG_B=y\n");
    let origin = &f.options().next().unwrap().1.origin;
    assert_eq!(origin, "later");
}

#[test]
fn text_does_not_depend_on_order_or_comments() {
    assert_eq!(
        fragment("CONFIG_A=y\nCONFIG_B=m\n").to_text(),
        fragment("# hello\nCONFIG_B=m\n\nCONFIG_A=y\n").to_text()
    );
}

#[test]
fn a_dropped_option_is_named_with_its_origin() {
    let f = fragment("CONFIG_A=y\nCONFIG_B=y\nCONFIG_OFF=n\n");
    let config = DotConfig::parse("CONFIG_A=y\n# CONFIG_B is not set\n");
    let error = f.check(&config, all_known).unwrap_err();
    assert_eq!(error.0.len(), 1);
    let text = error.to_string();
    assert!(text.contains("CONFIG_B=y (test:2)"), "{text}");
    assert!(text.contains("dependencies are not met"), "{text}");
    assert!(text.contains("init/Kconfig:7"), "{text}");
}

#[test]
fn an_unknown_option_is_an_error_unless_marked() {
    let config = DotConfig::parse("");
    let error = fragment("CONFIG_GONE=y\n")
        .check(&config, nothing_known)
        .unwrap_err();
    assert!(error.to_string().contains("no such option"), "{error}");

    let marked = fragment("# kscope: if-known\nCONFIG_GONE=y\n");
    marked.check(&config, nothing_known).unwrap();
    // Known, but dropped: the marker does not hide that.
    marked.check(&config, all_known).unwrap_err();
}

#[test]
fn the_marker_ends_at_a_blank_line() {
    let f = fragment("# kscope: if-known\n# why\nCONFIG_A=y\nCONFIG_B=y\n\nCONFIG_C=y\n");
    let marks: Vec<bool> = f.options().map(|(_, request)| request.if_known).collect();
    assert_eq!(marks, [true, true, false]);
}

#[test]
fn wrong_values_are_told_apart() {
    let f = fragment("CONFIG_M=m\nCONFIG_N=n\nCONFIG_HZ=100\nCONFIG_X=0x10\n");
    let config = DotConfig::parse("CONFIG_M=y\nCONFIG_N=y\nCONFIG_HZ=100\nCONFIG_X=16\n");
    let text = f.check(&config, all_known).unwrap_err().to_string();
    assert!(text.contains("CONFIG_M=m (test:1): is y instead"), "{text}");
    assert!(
        text.contains("CONFIG_N=n (test:2): is y because another option selects it"),
        "{text}"
    );
    assert!(
        !text.contains("CONFIG_HZ") && !text.contains("CONFIG_X"),
        "{text}"
    );
}

#[test]
fn finds_definitions_where_uml_looks() {
    let dir = tempfile::tempdir().unwrap();
    let write = |path: &str, text: &str| {
        let path = dir.path().join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    };
    write("init/Kconfig", "\nconfig A\n\tbool\nmenuconfig B\n");
    write("arch/arm/Kconfig", "config C\n");
    write("arch/x86/Kconfig", "config C\n");
    write("arch/x86/um/Kconfig", "config D\n");
    write("scripts/Kconfig.include", "config C\n");
    let names = ["CONFIG_A", "CONFIG_B", "CONFIG_C", "CONFIG_D"]
        .into_iter()
        .collect();
    let found = definitions(dir.path(), &names);
    let found: Vec<(&str, &str)> = found
        .iter()
        .map(|(name, place)| (name.as_str(), place.as_str()))
        .collect();
    assert_eq!(
        found,
        [
            ("CONFIG_A", "init/Kconfig:2"),
            ("CONFIG_B", "init/Kconfig:4"),
            ("CONFIG_D", "arch/x86/um/Kconfig:1")
        ]
    );
}
