//! Member paths such as `thread.switch_buf[0].__rip`.

/// One step of a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step<'a> {
    /// `.name`
    Member(&'a str),
    /// `[index]`
    Index(u64),
}

/// Splits a path into its steps, or tells what is wrong with it.
pub(super) fn parse(path: &str) -> Result<Vec<Step<'_>>, String> {
    let mut steps = Vec::new();
    let mut rest = path;
    while !rest.is_empty() {
        if let Some(after) = rest.strip_prefix('[') {
            let Some((index, after)) = after.split_once(']') else {
                return Err("a `[` without its `]`".to_owned());
            };
            let Ok(number) = index.trim().parse() else {
                return Err(format!("`{index}` is not an index"));
            };
            steps.push(Step::Index(number));
            rest = after;
            continue;
        }
        if !steps.is_empty() {
            let Some(after) = rest.strip_prefix('.') else {
                return Err(format!("a `.` or `[` is missing before `{rest}`"));
            };
            rest = after;
        }
        let end = rest.find(['.', '[']).unwrap_or(rest.len());
        let (name, after) = rest.split_at(end);
        if name.is_empty() || !name.bytes().all(|b| b == b'_' || b.is_ascii_alphanumeric()) {
            return Err(format!("`{name}` is not a member name"));
        }
        steps.push(Step::Member(name));
        rest = after;
    }
    Ok(steps)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_split_into_steps() {
        use Step::{Index, Member};
        assert_eq!(parse("pid"), Ok(vec![Member("pid")]));
        assert_eq!(
            parse("thread.switch_buf[0].__rip"),
            Ok(vec![
                Member("thread"),
                Member("switch_buf"),
                Index(0),
                Member("__rip")
            ])
        );
        assert_eq!(parse("[3].task"), Ok(vec![Index(3), Member("task")]));
        assert_eq!(parse("a[1][2]"), Ok(vec![Member("a"), Index(1), Index(2)]));
        assert_eq!(parse(""), Ok(vec![]));
    }

    #[test]
    fn malformed_paths_are_told_apart() {
        for path in ["a..b", "a[", "a[x]", "a[1]b", ".a", "a b", "a."] {
            assert!(parse(path).is_err(), "{path}");
        }
    }
}
