//! Values of every kind, as text and as JSON.

use std::path::Path;

use kscope_kernel::{Image, Kernel, KernelAddr, Location, Reader, Style, Type, Value};

use crate::common::{Fixture, Loaded, compile};

/// The stand-in with the variables of `kernel/values.c`.
pub fn fixture(dwarf: &str) -> (Fixture, Kernel<Loaded>) {
    let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/stand_in/kernel");
    let source = |name| sources.join(name).to_str().expect("UTF-8").to_owned();
    let fixture = compile(612, &[dwarf, &source("values.c"), &source("other.c")]);
    let image = Image::open(&fixture.kernel).expect("a kernel");
    let kernel = Kernel::new(image, fixture.memory()).expect("its layouts");
    (fixture, kernel)
}

/// The type and the address of a variable.
fn variable(kernel: &Kernel<Loaded>, name: &str) -> (Type, KernelAddr) {
    let layout = kernel.image().layout().expect("DWARF");
    let found = layout.variables(name).expect("DWARF");
    let [variable] = &found[..] else {
        panic!("{name}: {found:?}");
    };
    (variable.ty.into(), variable.addr.expect("an address"))
}

fn value(kernel: &Kernel<Loaded>, name: &str, style: &Style) -> Value {
    let (ty, addr) = variable(kernel, name);
    let reader = Reader::new(kernel);
    let value = reader.value(&ty, Location::Kernel(addr), style);
    value.expect("a type that the DWARF knows")
}

/// The member of a struct that was read.
fn member<'a>(value: &'a Value, name: &str) -> &'a Value {
    let Value::Struct(members) = value else {
        panic!("{value}");
    };
    let found = members.iter().find(|(of, _)| of.as_deref() == Some(name));
    &found.unwrap_or_else(|| panic!("no {name}")).1
}

#[test]
fn every_kind_of_value_has_its_text() {
    for dwarf in ["-gdwarf-4", "-gdwarf-5"] {
        let (_fixture, kernel) = fixture(dwarf);
        let deep = Style {
            depth: 9,
            ..Style::default()
        };
        let all = value(&kernel, "all", &deep);
        for (name, text) in [
            ("tiny", "-5"),
            ("byte", "250"),
            ("half", "-30000"),
            ("word", "-2000000000"),
            ("wide", "-9000000000000000000"),
            ("unsigned_wide", "18000000000000000000"),
            ("truth", "true"),
            ("letter", "65 'A'"),
            ("fraction", "-2.5"),
            ("small_fraction", "0.25"),
            ("huge", "0x00000000000000010000000000000002"),
            ("color", "BLUE"),
            ("unsigned_color", "BLACK"),
            ("no_color", "99"),
            ("low", "5"),
            ("high", "100"),
            ("negative", "-7"),
            ("color_bits", "DARK"),
            ("flag", "true"),
            ("name", r#""swa\"p\\\n""#),
            ("full", r#""full""#),
            ("bytes", "{1, 2, 3, 255}"),
            ("name_in_bytes", r#""eth0""#),
            ("more_bytes", "{0, 0, 0, 0, 0}"),
            ("nothing", "NULL"),
            ("points", "{{x = 1, y = 2}, {x = 3, y = 4}, {x = 5, y = 6}}"),
            ("matrix", "{{1, 2, 3}, {4, 5, 6}}"),
            ("zeros", "{0 <repeats 64 times>}"),
            ("ramp", "{1, 1, 2, 2, 2, 3}"),
            ("atomic", "17"),
            ("refcount", "18"),
            ("kref", "19"),
            ("p4d", "4195"),
            ("empty", "<empty list>"),
            ("hempty", "<empty list>"),
            ("a", "{b = {c = {deep = 77}}}"),
            ("declared", "NULL"),
            ("flexible", "{}"),
        ] {
            assert_eq!(member(&all, name).to_string(), text, "{name}");
        }
        let at = |name: &str| variable(&kernel, name).1;
        let pointer = at("all");
        for (name, text) in [
            ("inner", format!("{} <origin>", at("origin"))),
            ("hlist", format!("{{first = {} <node>}}", at("node"))),
            (
                "list",
                format!(
                    "{{next = {0} <other_list>, prev = {0} <other_list>}}",
                    at("other_list")
                ),
            ),
        ] {
            assert_eq!(member(&all, name).to_string(), text, "{name}");
        }
        let ends = |name: &str, end: &str| {
            let text = member(&all, name).to_string();
            assert!(
                text.starts_with("0x") && text.ends_with(end),
                "{name}: {text}"
            );
        };
        ends("text", " \"some text\"");
        ends("unsigned_text", " \"an entry\"");
        ends("function", " <function>");
        let layout = kernel.image().layout().expect("DWARF");
        let name = layout.member("struct all", "name").expect("it is there");
        let name = format!("{} <all+{}>", pointer + name.offset, name.offset);
        assert_eq!(member(&all, "pointer").to_string(), name);
        // The members of anonymous members belong to the struct.
        let json = serde_json::to_value(&all).expect("JSON");
        assert_eq!(json["as_word"], 0x2_0001);
        assert_eq!((&json["as_low"], &json["as_high"]), (&1.into(), &2.into()));
        assert_eq!(json["color"], "BLUE");
        assert_eq!(json["no_color"], 99);
        assert_eq!(json["zeros"].as_array().map(Vec::len), Some(64));
        assert_eq!(json["nothing"], serde_json::Value::Null);
        assert_eq!(json["text"]["text"], "some text");
        assert_eq!(json["inner"]["symbol"], "origin");
        assert_eq!(json["inner"]["addr"], at("origin").to_string());
        assert_eq!(json["empty"]["next"]["symbol"], "all");
    }
}

#[test]
fn types_have_their_c_text() {
    let (_fixture, kernel) = fixture("-gdwarf-5");
    let layout = kernel.image().layout().expect("DWARF");
    let declared = |name: &str| {
        let (ty, _) = variable(&kernel, name);
        layout.declare(&ty, name).expect("a type")
    };
    assert_eq!(
        declared("functions"),
        "int (*functions[2])(struct all *, int)"
    );
    assert_eq!(
        declared("complicated"),
        "int (*(*complicated)(const char * const, ...))[3]"
    );
    assert_eq!(declared("origin"), "struct point origin");
    let (ty, _) = variable(&kernel, "complicated");
    assert_eq!(
        layout.spell(&ty).as_deref(),
        Ok("int (*(*)(const char * const, ...))[3]")
    );
    let function = layout.function("function").expect("DWARF");
    assert_eq!(
        layout.spell(&function.into()).as_deref(),
        Ok("int (struct all *, int)")
    );
    let point = Type::Known(layout.type_named("struct point").expect("a type"));
    assert_eq!(
        layout.spell(&Type::Array(Box::new(point.clone().pointer()), Some(3))),
        Ok("struct point *[3]".to_owned())
    );
    assert_eq!(layout.size(&point.pointer()), Ok(8));
    assert_eq!(
        layout
            .any_enumerator("NAMELESS")
            .map(|found| found.map(|(_, value)| value)),
        Ok(Some(42))
    );
    assert_eq!(
        layout
            .any_enumerator("BLUE")
            .map(|found| found.map(|(_, value)| value)),
        Ok(Some(200))
    );
    assert_eq!(layout.any_enumerator("PURPLE"), Ok(None));
}

#[test]
fn what_is_too_much_or_not_there_is_told() {
    let (_fixture, kernel) = fixture("-gdwarf-5");
    let style = Style {
        depth: 1,
        elements: 2,
        text: 3,
        hex: false,
        raw: true,
    };
    let all = value(&kernel, "all", &style);
    for (name, text) in [
        ("points", "{...}"),
        ("a", "{...}"),
        ("atomic", "{...}"),
        ("ramp", "{1, 1, 2, 2, 2, ... <1 more>}"),
        ("name", "\"swa\"..."),
        ("bytes", "{1, 2, ... <2 more>}"),
    ] {
        assert_eq!(member(&all, name).to_string(), text, "{name}");
    }
    assert!(all.is_cut());
    let reader = Reader::new(&kernel);
    let (ty, _) = variable(&kernel, "origin");
    let read = |at| reader.value(&ty, at, &Style::default()).expect("a type");
    assert_eq!(
        read(Location::Kernel(KernelAddr(64))).to_string(),
        "<unreadable: no memory at 0x40>"
    );
    assert_eq!(
        read(Location::Bytes(&[1, 0, 0, 0, 2, 0, 0, 0])).to_string(),
        "{x = 1, y = 2}"
    );
    assert_eq!(
        read(Location::Bytes(&[1, 0, 0, 0, 2])).to_string(),
        "{x = 1, y = <unreadable: not all of it is known>}"
    );
    assert_eq!(
        reader
            .value(&ty, Location::Bytes(&[]), &Style::BRIEF)
            .expect("a type")
            .to_string(),
        "{...}"
    );
}
