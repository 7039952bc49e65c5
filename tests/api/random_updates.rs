//! Random trees that are changed at random between the passes of their copy. Needs root, and filesystems on loop devices.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt as _, chown, lchown};
use std::path::{Path, PathBuf};

use orlop::fs::copy::SourceState;
use proptest::prelude::*;
use proptest::test_runner::TestRunner;
use rustix::fs::{CWD, FallocateFlags, FileType, RenameFlags, fallocate, lremovexattr, renameat_with};

use super::copy_update::{Workspace, on_each_filesystem, succeed, wait_for_the_clock};
use super::trees::{acl, make_node, make_symlink, set_mode, set_times, set_xattr};
use crate::common::mapper::Mapper;

/// A change of a tree. The numbers choose paths and offsets among those that exist.
#[derive(Debug, Clone)]
struct Change {
    kind: u8,
    one: usize,
    other: usize,
    number: u32,
}

const KINDS: u8 = 24;

fn changes(most: usize) -> impl Strategy<Value = Vec<Change>> {
    let change = (0..KINDS, any::<usize>(), any::<usize>(), any::<u32>())
        .prop_map(|(kind, one, other, number)| Change { kind, one, other, number });
    prop::collection::vec(change, 0..most)
}

/// The paths of a tree in a fixed order, with the top directory first.
fn paths(root: &Path) -> Vec<PathBuf> {
    let mut all = vec![root.to_owned()];
    let mut at = 0;
    while at < all.len() {
        if all[at].symlink_metadata().unwrap().is_dir() {
            let mut below: Vec<_> =
                fs::read_dir(&all[at]).unwrap().map(|entry| entry.unwrap().path()).collect();
            below.sort();
            all.extend(below);
        }
        at += 1;
    }
    all
}

struct Tree<'a> {
    root: &'a Path,
    mapper: &'a mut Mapper,
    made: u32,
}

impl Tree<'_> {
    fn new_path(&mut self, directories: &[PathBuf], choice: usize) -> PathBuf {
        self.made += 1;
        directories[choice % directories.len()].join(format!("n{}", self.made))
    }

    fn apply(&mut self, change: &Change) {
        let all = paths(self.root);
        let is = |test: fn(&fs::Metadata) -> bool| {
            let kept = |path: &&PathBuf| test(&path.symlink_metadata().unwrap());
            all.iter().filter(kept).cloned().collect::<Vec<_>>()
        };
        let (directories, files) = (is(fs::Metadata::is_dir), is(fs::Metadata::is_file));
        let one = all[change.one % all.len()].clone();
        let other = all[change.other % all.len()].clone();
        let is_top = one == self.root;
        match change.kind {
            0..=2 => {
                let path = self.new_path(&directories, change.one);
                fs::write(path, vec![b'a'; usize::try_from(change.number % 300_000).unwrap()]).unwrap();
            }
            3 | 4 => fs::create_dir(self.new_path(&directories, change.one)).unwrap(),
            5 => make_symlink(format!("{}", change.number), &self.new_path(&directories, change.one)),
            6 => make_node(&self.new_path(&directories, change.one), FileType::Fifo, 0o600, (0, 0)),
            7 if !is_top => remove(&one),
            8 | 9 if !is_top => {
                let to = self.new_path(&directories, change.other);
                // Not into itself.
                let _ = fs::rename(&one, to);
            }
            10 if !is_top && other != self.root => {
                let _ = renameat_with(CWD, &one, CWD, &other, RenameFlags::EXCHANGE);
            }
            11 if !is_top && !one.symlink_metadata().unwrap().is_dir() => {
                fs::hard_link(&one, self.new_path(&directories, change.other)).unwrap();
            }
            12 if !is_top => {
                remove(&one);
                match change.number % 3 {
                    0 => fs::write(&one, "replaced").unwrap(),
                    1 => fs::create_dir(&one).unwrap(),
                    _ => make_symlink("replaced", &one),
                }
            }
            13..=17 => self.change_attributes(&one, change),
            _ if files.is_empty() => {}
            kind => self.change_data(&files[change.one % files.len()], kind, change.number),
        }
    }

    fn change_attributes(&self, path: &Path, change: &Change) {
        let metadata = path.symlink_metadata().unwrap();
        let number = change.number;
        match change.kind {
            13 if !metadata.is_symlink() => set_mode(path, number & 0o7777),
            13 | 14 if metadata.is_symlink() => lchown(path, Some(number % 9), Some(number % 7)).unwrap(),
            14 => chown(path, Some(number % 9), Some(number % 7)).unwrap(),
            15 => {
                let name = format!("trusted.{}", number % 3);
                if number & 64 == 0 {
                    set_xattr(path, &name, &number.to_le_bytes());
                } else {
                    let _ = lremovexattr(path, name);
                }
            }
            16 if !metadata.is_symlink() => {
                let kinds = ["system.posix_acl_access", "system.posix_acl_default"];
                let name = kinds[usize::from(metadata.is_dir() && number & 1 == 0)];
                if number & 64 == 0 {
                    set_xattr(path, name, &acl(number % 5));
                } else {
                    let _ = lremovexattr(path, name);
                }
            }
            // It stays later than the other times, so that reading a symlink does not change it.
            _ if metadata.is_symlink() => set_times(path, (4_000_000_000, 1), ((number / 2).into(), 2)),
            _ => set_times(path, (number.into(), 1), (number.into(), 2)),
        }
    }

    fn change_data(&mut self, path: &Path, kind: u8, number: u32) {
        let file = File::options().write(true).open(path).unwrap();
        let size = file.metadata().unwrap().len();
        let offset = u64::from(number) % size.max(1);
        match kind {
            18 => file.set_len(u64::from(number % 400_000)).unwrap(),
            19 => file.write_all_at(&[b'b'; 5000], size).unwrap(),
            20 => file.write_all_at(&[b'c'; 100], offset).unwrap(),
            21 => file.write_all_at(&[b'd'; 10], size + u64::from(number % 500_000)).unwrap(),
            22 if size > 0 => {
                let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
                fallocate(&file, punch, offset, u64::from(number % 200_000) + 1).unwrap();
            }
            _ if size > 0 => self.mapper.map_and_store(path, offset, "m"),
            _ => {}
        }
    }
}

fn remove(path: &Path) {
    if path.symlink_metadata().unwrap().is_dir() {
        fs::remove_dir_all(path).unwrap();
    } else {
        fs::remove_file(path).unwrap();
    }
}

#[test]
fn random_changes_between_passes_are_copied_exactly() {
    on_each_filesystem(|filesystem, at| {
        let cases = if filesystem == "the build" { 40 } else { 16 };
        let mut runner = TestRunner::new(ProptestConfig { cases, ..ProptestConfig::default() });
        let rounds = prop::collection::vec(changes(25), 1..4);
        let last = prop_oneof![Just(SourceState::Paused), Just(SourceState::Unused)];
        let result = runner.run(&(changes(60), rounds, last), |(first, rounds, last)| {
            let workspace = Workspace::new(at);
            let mut mapper = Mapper::start();
            let mut tree = Tree { root: &workspace.from, mapper: &mut mapper, made: 0 };
            first.iter().for_each(|change| tree.apply(change));
            workspace.copying(None, |mut copier| {
                for round in &rounds {
                    succeed(copier.live());
                    wait_for_the_clock(&workspace.from);
                    round.iter().for_each(|change| tree.apply(change));
                }
                succeed(copier.freeze_point(last));
                succeed(copier.finish());
            });
            workspace.assert_equal();
            Ok(())
        });
        result.unwrap_or_else(|error| panic!("{filesystem}: {error}"));
    });
}
