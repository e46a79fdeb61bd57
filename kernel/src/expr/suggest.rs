//! What may have been meant by a name that is not there.

/// The closest of `names` to a misspelt one: at most a third of its letters are wrong.
pub(crate) fn closest<'a>(
    wrong: &str,
    names: impl IntoIterator<Item = &'a str>,
) -> Option<&'a str> {
    let most = (wrong.len() / 3).min(3);
    let mut best: Option<(usize, &str)> = None;
    for name in names {
        let limit = best.map_or(most, |(distance, _)| distance.saturating_sub(1));
        if name.len().abs_diff(wrong.len()) > limit || name == wrong {
            continue;
        }
        let distance = distance(wrong.as_bytes(), name.as_bytes());
        if distance <= limit {
            best = Some((distance, name));
            if distance <= 1 {
                break;
            }
        }
    }
    best.map(|(_, name)| name)
}

/// `; did you mean ...?`, or nothing.
pub(crate) fn did_you_mean<'a>(wrong: &str, names: impl IntoIterator<Item = &'a str>) -> String {
    match closest(wrong, names) {
        Some(name) => format!("; did you mean `{name}`?"),
        None => String::new(),
    }
}

/// How many letters are to be changed, added, taken away or swapped with the next.
fn distance(one: &[u8], other: &[u8]) -> usize {
    let mut before: Vec<usize> = Vec::new();
    let mut last: Vec<usize> = (0..=other.len()).collect();
    for (row, a) in one.iter().enumerate() {
        let mut line = vec![row + 1];
        for (column, b) in other.iter().enumerate() {
            let get = |line: &[usize], at: usize| line.get(at).copied().unwrap_or(usize::MAX / 2);
            let same = a == b;
            let mut cost = get(&last, column) + usize::from(!same);
            cost = cost.min(get(&last, column + 1) + 1);
            cost = cost.min(get(&line, column) + 1);
            let swapped = column > 0
                && one.get(row.wrapping_sub(1)) == Some(b)
                && other.get(column - 1) == Some(a);
            if swapped && row > 0 {
                cost = cost.min(get(&before, column - 1) + 1);
            }
            line.push(cost);
        }
        before = std::mem::replace(&mut last, line);
    }
    last.last().copied().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_closest_name_is_found() {
        let names = ["pid", "comm", "cpus_mask", "__state", "tasks"];
        assert_eq!(closest("com", names), Some("comm"));
        assert_eq!(closest("cmom", names), Some("comm"));
        assert_eq!(closest("cpu_mask", names), Some("cpus_mask"));
        assert_eq!(closest("state", names), None);
        assert_eq!(closest("nothing_like_it", names), None);
        assert_eq!(closest("", names), None);
        assert_eq!(did_you_mean("task", names), "; did you mean `tasks`?");
    }
}
