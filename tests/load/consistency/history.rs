//! The history that `writer.c` makes, and the check that a directory shows a prefix of it.

use std::fs;
use std::path::Path;

use crate::common::pool::names;

const FILES: u64 = 50;
const NUMBER: usize = size_of::<u64>();
const PAGE: usize = 4096;
const DIRECT: usize = 64 << 10;
const LARGE: usize = 1 << 20;

/// How the writer writes to a file. After each step the file contains…
#[derive(Debug, Clone, Copy)]
enum Kind {
    /// the last steps, each in the next of so many slots at this distance.
    Ring { slots: u64, distance: usize },
    /// all steps of this file.
    Append,
    /// the last step. It is made under another name, and renamed over the old file.
    Rename,
    /// the last step. It is written to the file `exchange.other`, and the two are exchanged.
    Exchange,
    /// the last step, repeated.
    Fill { bytes: usize },
}

fn kind(file: u64) -> Kind {
    match file {
        0 => Kind::Ring { slots: 16, distance: PAGE },
        1 => Kind::Append,
        2 => Kind::Rename,
        3 => Kind::Exchange,
        4 => Kind::Fill { bytes: DIRECT },
        5 => Kind::Fill { bytes: LARGE },
        _ => Kind::Ring { slots: 512, distance: NUMBER },
    }
}

fn name(file: u64) -> String {
    match file {
        0 => "mapping".into(),
        1 => "append".into(),
        2 => "rename".into(),
        3 => "exchange".into(),
        4 => "direct".into(),
        5 => "large".into(),
        _ => format!("plain-{file:02}"),
    }
}

/// The last step of a file that is not after this one; 0 if it has none yet.
fn last_step_of(file: u64, step: u64) -> u64 {
    let last = step.saturating_sub((step + FILES - file) % FILES);
    if last % FILES == file { last } else { 0 }
}

/// What one file shows.
#[derive(Debug)]
struct Shown {
    /// Its last step that has ended.
    last: u64,
    /// Whether a part of the next one is visible.
    next_has_begun: bool,
}

/// Checks that the directories of the writer, one or two, show the history up to one step. Returns this step, or the
/// contradiction.
pub(super) fn last_step(dirs: &[&Path]) -> Result<u64, String> {
    let mut all = Vec::new();
    for (file, dir) in (0..FILES).zip(dirs.iter().cycle()) {
        all.push(shown(dir, file).map_err(|what| format!("{}: {what}", name(file)))?);
    }
    let step = all.iter().map(|shown| shown.last).max().unwrap_or_default();
    for (file, shown) in (0..FILES).zip(&all) {
        let expected = last_step_of(file, step);
        if shown.last != expected {
            let name = name(file);
            return Err(format!(
                "{name} shows step {} and not {expected}, but step {step} is there",
                shown.last
            ));
        }
        if shown.next_has_begun && (step + 1) % FILES != file {
            return Err(format!("{} shows a part of a step after {}", name(file), step + 1));
        }
    }
    let mut expected: Vec<_> = (0..FILES).map(name).collect();
    expected.extend(["exchange.other", "rename.new"].map(String::from));
    match dirs.iter().flat_map(|dir| names(dir)).find(|name| !expected.contains(name)) {
        Some(other) => Err(format!("the writer has made no file {other}")),
        None => Ok(step),
    }
}

fn shown(dir: &Path, file: u64) -> Result<Shown, String> {
    let path = dir.join(name(file));
    let bytes = fs::read(&path).map_err(|error| error.to_string())?;
    let (numbers, rest) = bytes.as_chunks::<NUMBER>();
    if !rest.is_empty() {
        return Err(format!("{} bytes, which are no whole numbers", bytes.len()));
    }
    let numbers: Vec<_> = numbers.iter().map(|bytes| u64::from_ne_bytes(*bytes)).collect();
    let shown = match kind(file) {
        Kind::Ring { .. } | Kind::Append => {
            Shown { last: numbers.iter().copied().max().unwrap_or_default(), next_has_begun: false }
        }
        Kind::Rename => {
            Shown { last: only(&numbers)?, next_has_begun: fs::exists(dir.join("rename.new")).unwrap() }
        }
        Kind::Exchange => exchanged(dir, only(&numbers)?)?,
        Kind::Fill { bytes } => filled(&numbers, bytes)?,
    };
    let is_complete = match kind(file) {
        Kind::Ring { .. } | Kind::Append => bytes == contents(file, shown.last),
        Kind::Rename | Kind::Exchange | Kind::Fill { .. } => true,
    };
    match (is_complete, shown.last == 0 || shown.last % FILES == file) {
        (true, true) => Ok(shown),
        (true, false) => Err(format!("step {} was written to another file", shown.last)),
        (false, _) => Err(format!("steps before {} are missing", shown.last)),
    }
}

fn only(numbers: &[u64]) -> Result<u64, String> {
    match numbers {
        [number] => Ok(*number),
        _ => Err(format!("{} numbers, not one", numbers.len())),
    }
}

/// The next step of a file.
fn next(file: u64, last: u64) -> u64 {
    if last == 0 && file != 0 { file } else { last + FILES }
}

/// The file that is exchanged, and the one that it is exchanged with.
fn exchanged(dir: &Path, last: u64) -> Result<Shown, String> {
    let other = fs::read(dir.join("exchange.other")).map_err(|error| error.to_string())?;
    let other = u64::from_ne_bytes(other.try_into().map_err(|_| "exchange.other is not one number")?);
    if other == last_step_of(3, last.saturating_sub(FILES)) {
        Ok(Shown { last, next_has_begun: false })
    } else if other == next(3, last) {
        Ok(Shown { last, next_has_begun: true })
    } else {
        Err(format!("step {last} beside {other} in exchange.other"))
    }
}

/// A file that is filled with one step, or partly with the next.
fn filled(numbers: &[u64], bytes: usize) -> Result<Shown, String> {
    let (lowest, highest) = (numbers.iter().min().unwrap_or(&0), numbers.iter().max().unwrap_or(&0));
    let is_one = |number: &u64| number == lowest || number == highest;
    if numbers.len() * NUMBER != bytes || !numbers.iter().all(is_one) {
        return Err(format!("{} numbers from {lowest} to {highest}", numbers.len()));
    }
    let file = highest % FILES;
    match lowest == highest {
        true => Ok(Shown { last: *lowest, next_has_begun: false }),
        false if *highest == next(file, *lowest) => Ok(Shown { last: *lowest, next_has_begun: true }),
        false => Err(format!("parts of the steps {lowest} and {highest}")),
    }
}

/// What a file contains when a step of it, or none, was the last.
fn contents(file: u64, last: u64) -> Vec<u8> {
    let first = if file == 0 { FILES } else { file };
    let steps = || (first..=last).step_by(usize::try_from(FILES).unwrap());
    match kind(file) {
        Kind::Append => steps().flat_map(u64::to_ne_bytes).collect(),
        Kind::Rename | Kind::Exchange => last.to_ne_bytes().to_vec(),
        Kind::Fill { bytes } => last.to_ne_bytes().repeat(bytes / NUMBER),
        Kind::Ring { slots, distance } => {
            let slots = usize::try_from(slots).unwrap();
            let mut bytes = vec![0; slots * distance];
            let newest = steps().skip(usize::try_from(last / FILES).unwrap().saturating_sub(slots));
            for step in newest {
                let at = usize::try_from(step / FILES).unwrap() % slots * distance;
                bytes[at..at + NUMBER].copy_from_slice(&step.to_ne_bytes());
            }
            bytes
        }
    }
}

/// Makes the directory as the writer leaves it after a step.
fn write(dir: &Path, step: u64) {
    for file in 0..FILES {
        write_file(dir, file, last_step_of(file, step));
    }
}

fn write_file(dir: &Path, file: u64, last: u64) {
    fs::write(dir.join(name(file)), contents(file, last)).unwrap();
    if let Kind::Exchange = kind(file) {
        let other = last_step_of(file, last.saturating_sub(FILES));
        fs::write(dir.join("exchange.other"), other.to_ne_bytes()).unwrap();
    }
}

#[test]
fn every_step_of_the_history_is_recognized() {
    let dir = tempfile::tempdir().unwrap();
    for step in (0..=120).chain([49_999, 50_000, 50_004]) {
        write(dir.path(), step);
        assert_eq!(last_step(&[dir.path()]), Ok(step));
    }
}

#[test]
fn a_file_that_lags_behind_or_runs_ahead_is_found() {
    let dir = tempfile::tempdir().unwrap();
    let step = 1234;
    for file in 0..FILES {
        let last = last_step_of(file, step);
        for other in [last - FILES, last + FILES] {
            write(dir.path(), step);
            write_file(dir.path(), file, other);
            let is_prefix = last_step(&[dir.path()]);
            // The next file may be ahead by the step that follows, and the last one may lack its step.
            let allowed = other == step + 1 || (last == step && other < last);
            assert_eq!(is_prefix.is_ok(), allowed, "{} at {other}: {is_prefix:?}", name(file));
        }
    }
}

#[test]
fn a_step_may_be_incomplete_only_if_it_is_the_next_one() {
    let dir = tempfile::tempdir().unwrap();
    for (file, begin) in begun_steps() {
        for (step, allowed) in [(1000 + file - 1, true), (1000 + file, false), (1000 + file + 10, false)] {
            write(dir.path(), step);
            begin(dir.path(), last_step_of(file, step));
            let is_prefix = last_step(&[dir.path()]);
            assert_eq!(is_prefix == Ok(step), allowed, "{} after {step}: {is_prefix:?}", name(file));
            let _ = fs::remove_file(dir.path().join("rename.new"));
        }
    }
}

/// Makes a part of the step after this one visible.
type Begin = fn(&Path, u64);

/// Files with steps that have a middle, and what makes a part of the step after this one visible.
fn begun_steps() -> [(u64, Begin); 4] {
    fn fill_half(dir: &Path, file: u64, last: u64) {
        let mut bytes = contents(file, last);
        let half = bytes.len() / 2;
        bytes[..half].copy_from_slice(&contents(file, last + FILES)[..half]);
        fs::write(dir.join(name(file)), bytes).unwrap();
    }
    [
        (2, |dir, _| fs::write(dir.join("rename.new"), "").unwrap()),
        (3, |dir, last| fs::write(dir.join("exchange.other"), (last + FILES).to_ne_bytes()).unwrap()),
        (4, |dir, last| fill_half(dir, 4, last)),
        (5, |dir, last| fill_half(dir, 5, last)),
    ]
}

#[test]
fn a_file_that_has_lost_an_earlier_step_is_found() {
    let dir = tempfile::tempdir().unwrap();
    for file in [0, 1, 7] {
        write(dir.path(), 1234);
        let mut bytes = contents(file, last_step_of(file, 1234));
        bytes[..NUMBER].copy_from_slice(&[0; NUMBER]);
        fs::write(dir.path().join(name(file)), bytes).unwrap();
        assert!(last_step(&[dir.path()]).unwrap_err().contains("missing"), "{}", name(file));
    }
}

#[test]
fn a_file_that_belongs_to_no_history_is_found() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), 1234);
    fs::write(dir.path().join("plain-50"), "").unwrap();
    assert!(last_step(&[dir.path()]).unwrap_err().contains("plain-50"));
}
