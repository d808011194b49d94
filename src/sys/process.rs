//! The processes that may be seen from here. Source: proc_pid_stat(5).

use std::{fs, io};

/// What `/proc` says of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stat {
    /// The number of its parent.
    pub parent: u32,
    /// When it was started, in the clock's ticks since the machine was: numbers begin anew at their end, so they tell no age.
    pub start: u64,
    /// It has ended, and nobody has asked how.
    pub over: bool,
}

impl Stat {
    /// That of the process of a number; none where there is none.
    pub fn of(process: u32) -> Option<Self> {
        Self::read(&fs::read_to_string(format!("/proc/{process}/stat")).ok()?)
    }

    fn read(text: &str) -> Option<Self> {
        // The name before may hold anything, parentheses too.
        let mut fields = text.rsplit_once(')')?.1.split_ascii_whitespace();
        let over = matches!(fields.next()?, "Z" | "X");
        let parent = fields.next()?.parse().ok()?;
        // Field 22 of all, the first of which are the number, the name and the two above.
        Some(Self { parent, start: fields.nth(22 - 5)?.parse().ok()?, over })
    }
}

/// Their numbers, in no order.
///
/// # Errors
/// Where `/proc` cannot be read.
pub fn numbers() -> io::Result<impl Iterator<Item = u32>> {
    let entries = fs::read_dir("/proc")?.flatten();
    Ok(entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_was_started_first_is_known() {
        let stat = Stat::of(std::process::id()).expect("we run");
        assert!(!stat.over && Stat::of(1).expect("there is a first process").start <= stat.start);
        assert_eq!(stat.parent, std::os::unix::process::parent_id());
        assert!(Stat::of(stat.parent).is_none_or(|parent| parent.start <= stat.start));
        assert_eq!(Stat::of(u32::MAX), None);
        assert!(numbers().expect("readable").any(|number| number == std::process::id()));
    }

    #[test]
    fn a_name_may_hold_anything() {
        let text = "7 (a) Z 1 (b c) Z 3 7 7 0 -1 4 0 0 0 0 0 0 0 0 20 0 1 0 812 0 0";
        assert_eq!(Stat::read(text), Some(Stat { parent: 3, start: 812, over: true }));
        for end in 0..text.len() - 6 {
            assert!(Stat::read(&text[..end]).is_none_or(|stat| stat.start != 812), "{end}");
        }
    }
}
