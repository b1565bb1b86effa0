//! Slurm's short forms: `n[1-3,7],gpu[01-03]` for host names, `2,1(x3)` for tasks on each of them.

use crate::error::{Error, Result};

/// The most hosts of one list.
const MOST: usize = 1 << 16;

/// The hosts of a list, in its order. An item is text with any number of `[…]` in it; a number in brackets keeps its leading
/// zeros.
pub fn hosts(list: &str) -> Result<Vec<String>> {
    let refuse = |found: &str| Error::config("host list", "names such as n[1-3,7],gpu[01-03]", found);
    let mut hosts = Vec::new();
    for item in items(list).ok_or_else(|| refuse(list))? {
        let expanded = expand(item).filter(|names| hosts.len() + names.len() <= MOST);
        hosts.extend(expanded.ok_or_else(|| refuse(item))?);
    }
    Ok(hosts)
}

/// How many tasks each host has: `2,1(x3)` is 2, 1, 1, 1.
pub fn tasks_per_node(list: &str) -> Result<Vec<u32>> {
    let refuse = || Error::config("tasks per node", "numbers such as 2,1(x3)", list);
    let mut tasks = Vec::new();
    for item in list.split(',') {
        let (count, times) = match item.split_once("(x") {
            Some((count, times)) => (count, times.strip_suffix(')').ok_or_else(refuse)?),
            None => (item, "1"),
        };
        let times = number(times).filter(|times| *times <= MOST - tasks.len()).ok_or_else(refuse)?;
        let count = number(count).and_then(|count| u32::try_from(count).ok()).ok_or_else(refuse)?;
        tasks.extend(std::iter::repeat_n(count, times));
    }
    Ok(tasks)
}

/// Cuts at the commas outside brackets. `None` when brackets don't match or an item is empty.
pub(super) fn items(list: &str) -> Option<Vec<&str>> {
    let (mut items, mut start, mut inside) = (Vec::new(), 0, false);
    for (at, c) in list.char_indices() {
        match c {
            '[' if inside => return None,
            '[' => inside = true,
            ']' if !inside => return None,
            ']' => inside = false,
            ',' if !inside => {
                items.push(&list[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    items.push(&list[start..]);
    (!inside && items.iter().all(|item| !item.is_empty())).then_some(items)
}

/// All names of one item: its first bracket varies slowest.
fn expand(item: &str) -> Option<Vec<String>> {
    let mut names = vec![String::new()];
    let mut rest = item;
    while let Some((text, after)) = rest.split_once('[') {
        let (set, after) = after.split_once(']')?;
        let mut numbers = Vec::new();
        for range in set.split(',') {
            let (first, last) = range.split_once('-').unwrap_or((range, range));
            let (from, to, width) = (number(first)?, number(last)?, first.len());
            if from > to || to - from >= MOST {
                return None;
            }
            numbers.extend((from..=to).map(|n| format!("{n:0width$}")));
        }
        if names.len().checked_mul(numbers.len()).is_none_or(|total| total > MOST) {
            return None;
        }
        let with = |name: &String| numbers.iter().map(|n| format!("{name}{text}{n}")).collect::<Vec<_>>();
        names = names.iter().flat_map(with).collect();
        rest = after;
    }
    names.iter_mut().for_each(|name| name.push_str(rest));
    Some(names)
}

/// Digits only: `parse` alone would take a sign.
fn number(digits: &str) -> Option<usize> {
    let all = !digits.is_empty() && digits.len() <= 18 && digits.bytes().all(|b| b.is_ascii_digit());
    all.then(|| digits.parse().ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn lists_as_slurm_writes_them() {
        for (list, all) in [
            ("n1", "n1"),
            ("n[1-3,7],gpu[01-03]", "n1 n2 n3 n7 gpu01 gpu02 gpu03"),
            ("r[1-2]n[01-03]", "r1n01 r1n02 r1n03 r2n01 r2n02 r2n03"),
            ("gpu[08-11]", "gpu08 gpu09 gpu10 gpu11"),
            ("a,b,c-[1,3]", "a b c-1 c-3"),
            ("n[9-10]-ib", "n9-ib n10-ib"),
            ("x[098-101]", "x098 x099 x100 x101"),
        ] {
            assert_eq!(hosts(list).unwrap().join(" "), all, "{list}");
        }
    }

    #[test]
    fn tasks_as_slurm_writes_them() {
        assert_eq!(tasks_per_node("2,1(x3)").unwrap(), [2, 1, 1, 1]);
        assert_eq!(tasks_per_node("4").unwrap(), [4]);
        assert_eq!(tasks_per_node("1(x2),3").unwrap(), [1, 1, 3]);
    }

    #[test]
    fn what_is_no_list_is_refused() {
        for bad in
            ["", ",", "a,", "n[", "n]", "n[1", "n[]", "n[a]", "n[3-1]", "n[1-]", "n[[1]]", "n[+1]", "n[1,]"]
        {
            assert!(hosts(bad).is_err(), "{bad}");
        }
        for bad in ["n[0-65536]", "n[0-999]x[0-999]", "n[0-99999999999999999999]", "a[0-40000],b[0-40000]"] {
            assert!(hosts(bad).is_err(), "{bad}");
        }
        for bad in ["", "x", "2(x", "2(x)", "2(3)", "1(x99999999)", "-1", "1,,2", "99999999999"] {
            assert!(tasks_per_node(bad).is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn any_text_ends_with_names_or_an_error(text in "[n0-9\\[\\],()x-]{0,24}") {
            let _ = tasks_per_node(&text);
            if let Ok(hosts) = hosts(&text) {
                prop_assert!(!hosts.is_empty() && hosts.len() <= MOST);
                prop_assert!(hosts.iter().all(|host| !host.contains(['[', ']'])));
            }
        }

        #[test]
        fn a_range_has_all_its_numbers_in_their_width(from in 0usize..3000, count in 1usize..300, width in 1usize..6) {
            let list = format!("n[{from:0width$}-{:0width$}]", from + count - 1);
            let named = |n: usize| format!("n{n:0width$}");
            prop_assert_eq!(hosts(&list).unwrap(), (from..from + count).map(named).collect::<Vec<_>>());
        }
    }
}
