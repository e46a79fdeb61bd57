//! `printf` as C has it, for integers, characters, pointers and strings in the guest's memory.

use super::{Fault, Machine};

/// The most that one `printf` prints.
const MOST: usize = 4096;

/// The longest string that is read from the guest.
const MOST_STRING: usize = 1024;

/// What is printed.
#[derive(Default)]
pub(super) struct Output(Vec<u8>);

/// One conversion, `%-08.3lx`.
#[derive(Default)]
struct Conversion {
    left: bool,
    plus: bool,
    space: bool,
    alternate: bool,
    zero: bool,
    width: usize,
    precision: Option<usize>,
    /// Bits of the argument.
    bits: u32,
}

/// A format on its way.
struct Format<'f> {
    rest: &'f [u8],
    arguments: &'f [u64],
}

impl Format<'_> {
    fn next(&mut self) -> Option<u8> {
        let (&byte, rest) = self.rest.split_first()?;
        self.rest = rest;
        Some(byte)
    }

    fn next_if(&mut self, wanted: impl Fn(u8) -> bool) -> Option<u8> {
        let byte = self.rest.first().copied().filter(|&byte| wanted(byte))?;
        self.next();
        Some(byte)
    }

    fn argument(&mut self) -> Result<u64, Fault> {
        let (&argument, rest) = self.arguments.split_first().ok_or(Fault::Format)?;
        self.arguments = rest;
        Ok(argument)
    }

    /// A width or a precision: digits, or an argument.
    fn number(&mut self) -> Result<usize, Fault> {
        if self.next_if(|byte| byte == b'*').is_some() {
            return Ok(usize::try_from(self.argument()? as i32)
                .unwrap_or(0)
                .min(MOST));
        }
        let mut number = 0_usize;
        while let Some(digit) = self.next_if(|byte| byte.is_ascii_digit()) {
            number = (number * 10 + usize::from(digit - b'0')).min(MOST);
        }
        Ok(number)
    }

    /// What stands between the `%` and the letter.
    fn conversion(&mut self) -> Result<Conversion, Fault> {
        let mut conversion = Conversion {
            bits: 32,
            ..Conversion::default()
        };
        while let Some(flag) = self.next_if(|byte| b"-+ #0".contains(&byte)) {
            match flag {
                b'-' => conversion.left = true,
                b'+' => conversion.plus = true,
                b' ' => conversion.space = true,
                b'#' => conversion.alternate = true,
                _ => conversion.zero = true,
            }
        }
        conversion.width = self.number()?;
        if self.next_if(|byte| byte == b'.').is_some() {
            conversion.precision = Some(self.number()?);
        }
        while let Some(size) = self.next_if(|byte| b"hljztL".contains(&byte)) {
            conversion.bits = match size {
                b'h' => (conversion.bits / 2).max(8),
                _ => 64,
            };
        }
        Ok(conversion)
    }
}

impl Output {
    pub(super) fn clear(&mut self) {
        self.0.clear();
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.0
    }

    fn push(&mut self, bytes: &[u8]) {
        let room = MOST.saturating_sub(self.0.len()).min(bytes.len());
        self.0
            .extend_from_slice(bytes.get(..room).unwrap_or_default());
    }

    /// Prints. The format has its escapes as a C source has them.
    pub(super) fn format(
        &mut self,
        format: &[u8],
        arguments: &[u64],
        machine: &mut dyn Machine,
    ) -> Result<(), Fault> {
        let mut format = Format {
            rest: format,
            arguments,
        };
        while let Some(byte) = format.next() {
            match byte {
                b'\\' => self.escape(&mut format),
                b'%' if format.next_if(|byte| byte == b'%').is_some() => self.push(b"%"),
                b'%' => {
                    let conversion = format.conversion()?;
                    let letter = format.next().ok_or(Fault::Format)?;
                    let argument = format.argument()?;
                    self.convert(&conversion, letter, argument, machine)?;
                }
                byte => self.push(&[byte]),
            }
        }
        Ok(())
    }

    fn escape(&mut self, format: &mut Format<'_>) {
        let byte = match format.next() {
            Some(b'n') => b'\n',
            Some(b't') => b'\t',
            Some(b'r') => b'\r',
            Some(b'a') => 7,
            Some(b'b') => 8,
            Some(b'e') => 27,
            Some(b'f') => 12,
            Some(b'v') => 11,
            Some(digit @ b'0'..=b'7') => {
                let mut value = u32::from(digit - b'0');
                for _ in 0..2 {
                    let Some(digit) = format.next_if(|byte| (b'0'..=b'7').contains(&byte)) else {
                        break;
                    };
                    value = value * 8 + u32::from(digit - b'0');
                }
                value as u8
            }
            Some(other) => other,
            None => b'\\',
        };
        self.push(&[byte]);
    }

    fn convert(
        &mut self,
        conversion: &Conversion,
        letter: u8,
        argument: u64,
        machine: &mut dyn Machine,
    ) -> Result<(), Fault> {
        let unused = 64_u32.saturating_sub(conversion.bits).min(63);
        let unsigned = argument << unused >> unused;
        let signed = (argument << unused) as i64 >> unused;
        let prefix = |text| {
            if conversion.alternate && unsigned != 0 {
                text
            } else {
                ""
            }
        };
        match letter {
            b'd' | b'i' => {
                let sign = match (signed < 0, conversion.plus, conversion.space) {
                    (true, ..) => "-",
                    (_, true, _) => "+",
                    (_, _, true) => " ",
                    _ => "",
                };
                self.digits(conversion, sign, &signed.unsigned_abs().to_string());
            }
            b'u' => self.digits(conversion, "", &unsigned.to_string()),
            b'x' => self.digits(conversion, prefix("0x"), &format!("{unsigned:x}")),
            b'X' => self.digits(conversion, prefix("0X"), &format!("{unsigned:X}")),
            b'o' => self.digits(conversion, prefix("0"), &format!("{unsigned:o}")),
            b'p' if argument == 0 => self.pad(conversion, b"(nil)"),
            b'p' => self.digits(conversion, "0x", &format!("{argument:x}")),
            b'c' => self.pad(conversion, &[argument as u8]),
            b's' => {
                let text = string(argument, conversion.precision, machine)?;
                self.pad(conversion, &text);
            }
            _ => return Err(Fault::Format),
        }
        Ok(())
    }

    /// A number's digits, with what stands before them.
    fn digits(&mut self, conversion: &Conversion, prefix: &str, digits: &str) {
        let least = match conversion.precision {
            Some(precision) => precision,
            None if conversion.zero && !conversion.left => {
                conversion.width.saturating_sub(prefix.len())
            }
            None => 1,
        };
        let mut text = prefix.to_owned();
        text.extend(std::iter::repeat_n('0', least.saturating_sub(digits.len())));
        // Of nothing, with a precision of nothing, there is nothing.
        if !(digits == "0" && conversion.precision == Some(0)) {
            text += digits;
        }
        self.pad(conversion, text.as_bytes());
    }

    fn pad(&mut self, conversion: &Conversion, text: &[u8]) {
        let padding = vec![b' '; conversion.width.saturating_sub(text.len())];
        if conversion.left {
            self.push(text);
            self.push(&padding);
        } else {
            self.push(&padding);
            self.push(text);
        }
    }
}

/// A string of the guest's, which need not be readable behind its end.
fn string(
    addr: u64,
    precision: Option<usize>,
    machine: &mut dyn Machine,
) -> Result<Vec<u8>, Fault> {
    /// Bytes that are read at once, never across a multiple of it: a hole begins at a page.
    const PIECE: u64 = 64;
    if addr == 0 {
        return Ok(b"(null)".to_vec());
    }
    let most = precision.unwrap_or(MOST_STRING).min(MOST_STRING);
    let mut text = Vec::new();
    while text.len() < most {
        let at = addr
            .checked_add(text.len() as u64)
            .ok_or(Fault::Unreadable(addr))?;
        let len = ((PIECE - at % PIECE) as usize).min(most - text.len());
        let mut piece = [0; PIECE as usize];
        let piece = piece.get_mut(..len).unwrap_or_default();
        if !machine.read(at, piece) {
            return Err(Fault::Unreadable(at));
        }
        match piece.iter().position(|&byte| byte == 0) {
            Some(end) => {
                text.extend_from_slice(piece.get(..end).unwrap_or_default());
                break;
            }
            None => text.extend_from_slice(piece),
        }
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use proptest::prelude::*;

    use super::super::tests::Fixture;
    use super::*;

    fn print(format: &str, arguments: &[u64]) -> Result<String, Fault> {
        let mut fixture = Fixture::default();
        fixture.memory.extend(
            (0x100..0x140)
                .zip(*b"hello\0AndTheRestOfThePieceThatIsReadAtOnce,WhichIsOfNoInterest.\0\0\0"),
        );
        let mut output = Output::default();
        output.format(format.as_bytes(), arguments, &mut fixture)?;
        Ok(String::from_utf8_lossy(output.bytes()).into_owned())
    }

    #[test]
    fn numbers_are_printed_as_printf_does() {
        // What is not ours to say: the shell's own printf.
        let cases: &[(&str, i64)] = &[
            ("%d", -5),
            ("%5d|", 42),
            ("%-5d|", 42),
            ("%05d", -42),
            ("%+d", 7),
            ("% d", 7),
            ("%x", 0xbeef),
            ("%#x", 0xbeef),
            ("%#x", 0),
            ("%08x", 0xbeef),
            ("%#010x", 0xbeef),
            ("%.6d", 42),
            ("%8.4x|", 0xab),
            ("%o", 8),
            ("%#o", 8),
            ("%X", 0xab),
            ("%.0d|", 0),
            ("%-8lu|", 9),
            ("%%%d%%", 1),
            ("a\\tb\\101\\n%d", 3),
        ];
        for (format, argument) in cases {
            let expected = Command::new("printf")
                .args([(*format).to_owned(), argument.to_string()])
                .output()
                .expect("printf");
            let expected = String::from_utf8(expected.stdout).unwrap();
            assert_eq!(print(format, &[*argument as u64]), Ok(expected), "{format}");
        }
    }

    #[test]
    fn arguments_have_the_size_that_the_format_says() {
        assert_eq!(print("%d", &[0xffff_ffff]), Ok("-1".to_owned()));
        assert_eq!(print("%ld", &[0xffff_ffff]), Ok("4294967295".to_owned()));
        assert_eq!(print("%hhx", &[0x1234]), Ok("34".to_owned()));
        assert_eq!(
            print("%c%c", &[b'a'.into(), b'b'.into()]),
            Ok("ab".to_owned())
        );
        assert_eq!(print("%p %p", &[0, 16]), Ok("(nil) 0x10".to_owned()));
        assert_eq!(print("%*d", &[4, 1]), Ok("   1".to_owned()));
    }

    #[test]
    fn strings_come_from_the_guest() {
        assert_eq!(print("<%s>", &[0x100]), Ok("<hello>".to_owned()));
        assert_eq!(print("<%8.3s>", &[0x100]), Ok("<     hel>".to_owned()));
        assert_eq!(print("%s", &[0]), Ok("(null)".to_owned()));
        assert_eq!(print("%s", &[0x200]), Err(Fault::Unreadable(0x200)));
    }

    #[test]
    fn wrong_formats_are_errors() {
        for format in ["%d", "%", "%5", "%f", "%q"] {
            assert_eq!(print(format, &[]), Err(Fault::Format), "{format}");
        }
        assert_eq!(print("%f", &[1]), Err(Fault::Format));
        let long = print("%999999999d", &[1]).unwrap();
        assert_eq!(long.len(), MOST);
    }

    proptest! {
        #[test]
        fn any_format_is_survived(format in "[%a-z0-9.*#\\\\ ]{0,40}", arguments in proptest::collection::vec(any::<u64>(), 0..4)) {
            if let Ok(text) = print(&format, &arguments) {
                prop_assert!(text.len() <= 4 * MOST);
            }
        }
    }
}
