//! LCOV tracefiles (`geninfo(1)`): what genhtml, Codecov and most viewers read.

use std::io::{self, Write};

use crate::report::{Coverage, FileCoverage};

/// Writes `coverage` as a tracefile, with absolute source paths.
///
/// # Errors
///
/// Those of `out`.
pub fn write(coverage: &Coverage, out: &mut (impl Write + ?Sized)) -> io::Result<()> {
    writeln!(out, "TN:")?;
    for (path, file) in &coverage.files {
        writeln!(out, "SF:{path}")?;
        write_file(file, out)?;
        writeln!(out, "end_of_record")?;
    }
    Ok(())
}

fn write_file(file: &FileCoverage, out: &mut (impl Write + ?Sized)) -> io::Result<()> {
    let totals = file.totals();
    for (name, function) in &file.functions {
        writeln!(out, "FN:{},{name}", function.start_line)?;
    }
    for (name, function) in &file.functions {
        writeln!(out, "FNDA:{},{name}", function.count)?;
    }
    writeln!(out, "FNF:{}", totals.functions.found)?;
    writeln!(out, "FNH:{}", totals.functions.hit)?;
    for (number, line) in &file.lines {
        for (index, branch) in line.branches.iter().enumerate() {
            // `-` is for a choice that was never come to.
            match branch.reached {
                true => writeln!(out, "BRDA:{number},0,{index},{}", branch.count)?,
                false => writeln!(out, "BRDA:{number},0,{index},-")?,
            }
        }
    }
    writeln!(out, "BRF:{}", totals.branches.found)?;
    writeln!(out, "BRH:{}", totals.branches.hit)?;
    for (number, line) in &file.lines {
        writeln!(out, "DA:{number},{}", line.count)?;
    }
    writeln!(out, "LF:{}", totals.lines.found)?;
    writeln!(out, "LH:{}", totals.lines.hit)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::{BranchCoverage, FunctionCoverage, LineCoverage};

    #[test]
    fn a_tracefile_has_all_records() {
        let mut file = FileCoverage::default();
        let function = FunctionCoverage {
            start_line: 3,
            end_line: 9,
            count: 2,
        };
        file.functions.insert("f".to_owned(), function);
        file.functions.insert(
            "g".to_owned(),
            FunctionCoverage {
                start_line: 12,
                count: 0,
                ..function
            },
        );
        let branches = vec![
            BranchCoverage {
                count: 2,
                reached: true,
            },
            BranchCoverage {
                count: 0,
                reached: true,
            },
        ];
        file.lines.insert(4, LineCoverage { count: 2, branches });
        let branches = vec![BranchCoverage {
            count: 0,
            reached: false,
        }];
        file.lines.insert(13, LineCoverage { count: 0, branches });
        let mut coverage = Coverage::default();
        coverage.files.insert("/k/f.c".to_owned(), file);
        let mut out = Vec::new();
        write(&coverage, &mut out).unwrap();
        let expected = "TN:\nSF:/k/f.c\nFN:3,f\nFN:12,g\nFNDA:2,f\nFNDA:0,g\nFNF:2\nFNH:1\n\
            BRDA:4,0,0,2\nBRDA:4,0,1,0\nBRDA:13,0,0,-\nBRF:3\nBRH:1\n\
            DA:4,2\nDA:13,0\nLF:2\nLH:1\nend_of_record\n";
        assert_eq!(String::from_utf8(out).unwrap(), expected);
    }
}
