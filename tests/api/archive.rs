//! Trees written into archives and extracted again, by orlop and by GNU tar; archives that are damaged or hostile.
#![expect(clippy::disallowed_methods, reason = "GNU tar is a process")]

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use orlop::archive::{Entry, EntryKind, Reader, Writer};
use orlop::error::{Error, Kind, Result};
use orlop::fs::copy::Progress;
use orlop::fs::pack::{Packed, pack};
use orlop::fs::unpack::{Layout, UnpackSpec, Unpacked, unpack};
use proptest::prelude::*;

use super::copy::{assert_same, entries, make_tree, workspace};
use super::trees::{self, Facts, facts};
use crate::common::isolation::{is_root, on_own_tmpfs};
use crate::common::random::Random;

fn pack_tree(from: &Path) -> (Vec<u8>, Packed) {
    let mut writer = Writer::new(Vec::new());
    let from = File::open(from).unwrap();
    let packed = pack(from.as_fd(), &mut writer, false, &Progress::default());
    let packed = packed.unwrap_or_else(|error| panic!("{}", error.chain()));
    (writer.finish().unwrap().0, packed)
}

fn unpack_to(archive: &[u8], to: &Path, spec: &UnpackSpec) -> Result<Unpacked> {
    let scratch = tempfile::tempdir_in(to.parent().unwrap()).unwrap();
    let (to, scratch) = (File::open(to).unwrap(), File::open(scratch.path()).unwrap());
    unpack(&mut Reader::new(archive), to.as_fd(), scratch.as_fd(), spec, &Progress::default())
}

fn without_sockets(facts: BTreeMap<PathBuf, Facts>) -> BTreeMap<PathBuf, Facts> {
    facts.into_iter().filter(|(_, facts)| !facts.is_socket()).collect()
}

/// Packs `from`, extracts the archive with orlop and with GNU tar, and compares.
fn check_archive(workspace: &Path) {
    let (from, to, by_tar) = (workspace.join("from"), workspace.join("to"), workspace.join("tar"));
    let before = without_sockets(facts(&from));
    let (archive, packed) = pack_tree(&from);
    assert_eq!(packed.entries, before.len() as u64 - 1);
    let spec = UnpackSpec { devices: true, ..UnpackSpec::default() };
    let unpacked = unpack_to(&archive, &to, &spec).unwrap_or_else(|error| panic!("{}", error.chain()));
    assert_eq!(
        (unpacked.entries, unpacked.skipped_xattrs, unpacked.layout),
        (packed.entries, 0, Layout::Root)
    );
    assert_same(&before, &facts(&to));
    fs::create_dir(&by_tar).unwrap();
    let file = workspace.join("archive.tar");
    fs::write(&file, archive).unwrap();
    let options = ["--xattrs", "--xattrs-include=*", "--acls", "--numeric-owner", "-xpf"];
    assert!(Command::new("tar").arg("-C").arg(&by_tar).args(options).arg(&file).status().unwrap().success());
    // GNU tar does not restore the time of the last access, and may close holes.
    let comparable = |facts: BTreeMap<PathBuf, Facts>| {
        facts.into_iter().map(|(path, facts)| (path, facts.without_access().without_holes())).collect()
    };
    assert_same(&comparable(before), &comparable(facts(&by_tar)));
}

#[test]
fn unusual_trees_are_archived_as_by_cp() {
    if !is_root() {
        return;
    }
    for (name, make) in trees::UNUSUAL {
        eprintln!("tree: {name}");
        let workspace = workspace();
        make(&workspace.path().join("from"));
        check_archive(workspace.path());
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, ..ProptestConfig::default() })]
    #[test]
    fn random_trees_are_archived_exactly(entries in entries()) {
        if is_root() {
            let workspace = workspace();
            make_tree(&workspace.path().join("from"), &entries);
            check_archive(workspace.path());
        }
    }
}

fn entry(path: &str, kind: EntryKind) -> Entry {
    Entry {
        path: path.into(),
        kind,
        mode: 0o644,
        uid: 0,
        gid: 0,
        modified: (1_000_000, 0),
        accessed: None,
        xattrs: Vec::new(),
        size: 0,
        data: None,
    }
}

fn file(path: &str) -> Entry {
    entry(path, EntryKind::File)
}

fn archive(entries: &[Entry]) -> Vec<u8> {
    let mut writer = Writer::new(Vec::new());
    for entry in entries {
        writer.entry(entry).unwrap();
        let zeros = vec![0; usize::try_from(entry.stored()).unwrap()];
        writer.data(&zeros).unwrap();
    }
    writer.finish().unwrap().0
}

/// Extracts an archive that must be refused, and checks that nothing outside its directory changes.
fn refused(archive: &[u8], spec: &UnpackSpec) -> Error {
    let workspace = workspace();
    fs::write(workspace.path().join("secret"), "secret").unwrap();
    let before = facts(&workspace.path().join("from"));
    let error = unpack_to(archive, &workspace.path().join("to"), spec).unwrap_err();
    assert_eq!(facts(&workspace.path().join("from")), before);
    assert_eq!(fs::read(workspace.path().join("secret")).unwrap(), b"secret");
    let outside: Vec<_> =
        fs::read_dir(workspace.path()).unwrap().map(|found| found.unwrap().file_name()).collect();
    assert_eq!(outside.len(), 3, "{outside:?}");
    error
}

#[test]
fn an_entry_that_leads_outside_is_refused() {
    if !is_root() {
        return;
    }
    let symlink = |path, target: &str| entry(path, EntryKind::Symlink(target.into()));
    let hard_link = |path, target: &str| entry(path, EntryKind::HardLink(target.into()));
    for (entries, kind, expected) in [
        (vec![file("../secret")], Kind::Unreadable, "has a `..`"),
        (vec![file("a/../../secret")], Kind::Unreadable, "has a `..`"),
        (vec![file("/tmp/secret")], Kind::Unreadable, "is absolute"),
        (vec![symlink("link", ".."), file("link/secret")], Kind::Unreadable, "through a symbolic link"),
        (
            vec![symlink("link", "/"), entry("link/a", EntryKind::Directory)],
            Kind::Unreadable,
            "symbolic link",
        ),
        (vec![symlink("link", ".."), entry("link", EntryKind::Directory)], Kind::Unreadable, "symbolic link"),
        (vec![symlink("link", ".."), hard_link("secret", "link/secret")], Kind::Unreadable, "symbolic link"),
        (vec![hard_link("a", "../secret")], Kind::Unreadable, "has a `..`"),
        (vec![hard_link("a", "/etc/passwd")], Kind::Unreadable, "is absolute"),
        (vec![hard_link("a", "missing")], Kind::Unreadable, "is not there"),
        (vec![hard_link("a", ".")], Kind::Unreadable, "is not there"),
        (vec![file("a"), file("a/b")], Kind::Unreadable, "is no directory"),
        (vec![entry("a", EntryKind::Directory), file("a")], Kind::Unreadable, "is a directory"),
        (vec![file(".")], Kind::Unreadable, "the top directory"),
        (vec![file("a"), hard_link("a", "a")], Kind::Unreadable, "to itself"),
        (vec![entry("a", EntryKind::BlockDevice(8, 0))], Kind::Unsupported, "pass --devices"),
        (vec![entry("a", EntryKind::CharacterDevice(1, 1))], Kind::Unsupported, "pass --devices"),
    ] {
        let error = refused(&archive(&entries), &UnpackSpec::default());
        assert_eq!(error.kind(), kind, "{entries:?}: {}", error.chain());
        assert!(error.chain().contains(expected), "{entries:?}: {}", error.chain());
    }
}

#[test]
fn a_later_entry_replaces_a_symlink_and_does_not_follow_it() {
    if !is_root() {
        return;
    }
    let workspace = workspace();
    fs::write(workspace.path().join("secret"), "secret").unwrap();
    let link = entry("a", EntryKind::Symlink("../secret".into()));
    let data = Entry { size: 3, ..file("a") };
    unpack_to(&archive(&[link, data]), &workspace.path().join("to"), &UnpackSpec::default()).unwrap();
    assert_eq!(fs::read(workspace.path().join("to/a")).unwrap(), [0; 3]);
    assert_eq!(fs::read(workspace.path().join("secret")).unwrap(), b"secret");
}

#[test]
fn entries_of_one_name_replace_each_other_in_their_order() {
    if !is_root() {
        return;
    }
    // More than wait for one thread, in directories of several, with entries between that are created by another one.
    let mut entries: Vec<_> = (0..8).map(|dir| entry(&format!("d{dir}"), EntryKind::Directory)).collect();
    for round in 1..=3 {
        for number in 0..2000 {
            let path = format!("d{}/{}", number % 8, number / 16);
            entries.push(match (number + round) % 97 {
                0 => entry(&path, EntryKind::Symlink("nowhere".into())),
                1 => entry(&path, EntryKind::HardLink("d0/1000".into())),
                2 => Entry { size: 200_000 + round, ..file(&path) },
                _ => Entry { size: 10 * number + round, ..file(&path) },
            });
        }
        entries.push(Entry { size: 7, ..file("d0/1000") });
    }
    // The first one has nothing to refer to.
    entries.insert(8, file("d0/1000"));
    let workspace = workspace();
    let (to, by_tar) = (workspace.path().join("to"), workspace.path().join("tar"));
    let bytes = archive(&entries);
    unpack_to(&bytes, &to, &UnpackSpec::default()).unwrap_or_else(|error| panic!("{}", error.chain()));
    fs::create_dir(&by_tar).unwrap();
    fs::write(workspace.path().join("archive.tar"), bytes).unwrap();
    let mut tar = Command::new("tar");
    tar.arg("-C").arg(&by_tar).args(["--numeric-owner", "-xpf"]).arg(workspace.path().join("archive.tar"));
    assert!(tar.status().unwrap().success());
    let comparable = |dir: &Path| -> BTreeMap<_, _> {
        let facts = facts(dir).into_iter().filter(|(path, _)| path.components().count() > 1);
        facts.map(|(path, facts)| (path, facts.without_access().without_holes())).collect()
    };
    assert_same(&comparable(&by_tar), &comparable(&to));
}

#[test]
fn the_error_of_a_small_file_ends_the_restore() {
    if !is_root() {
        return;
    }
    let many: Vec<_> = (0..3000).map(|number| Entry { size: 4096, ..file(&number.to_string()) }).collect();
    on_own_tmpfs(c"size=2m", |top| {
        let to = top.join("to");
        fs::create_dir(&to).unwrap();
        let error = unpack_to(&archive(&many), &to, &UnpackSpec::default()).unwrap_err();
        assert_eq!(error.kind(), Kind::NoSpace, "{}", error.chain());
        assert!(error.chain().starts_with("extract "), "{}", error.chain());
    });
}

#[test]
fn a_restore_leaves_inodes_for_others() {
    if !is_root() {
        return;
    }
    let many: Vec<_> = (0..3950).map(|number| file(&number.to_string())).collect();
    on_own_tmpfs(c"nr_inodes=4000", |top| {
        let to = top.join("to");
        fs::create_dir(&to).unwrap();
        let error = unpack_to(&archive(&many), &to, &UnpackSpec::default()).unwrap_err();
        assert!(error.chain().contains("inodes of the filesystem are free"), "{}", error.chain());
        let free = rustix::fs::statvfs(&to).unwrap().f_favail;
        assert!((150..200).contains(&free), "{free}");
    });
}

#[test]
fn an_entry_with_very_many_attributes_is_read_in_bounded_time() {
    let xattrs = (0..100_000).map(|number| (format!("foo.{number}").into_bytes(), vec![])).collect();
    let bytes = archive(&[Entry { xattrs, ..file("a") }]);
    let began = Instant::now();
    let mut reader = Reader::new(&bytes[..]);
    while reader.next_entry().unwrap().is_some() {}
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
}

#[test]
fn more_data_than_the_volume_may_have_is_refused() {
    if !is_root() {
        return;
    }
    let bomb = archive(&[Entry { size: 1 << 20, ..file("a") }, Entry { size: 1, ..file("b") }]);
    let spec = UnpackSpec { max_bytes: Some(1 << 20), ..UnpackSpec::default() };
    let error = refused(&bomb, &spec);
    assert_eq!(error.kind(), Kind::OutOfRange, "{}", error.chain());
    let workspace = workspace();
    let sparse = Entry { size: 1 << 40, data: Some(vec![]), ..file("a") };
    unpack_to(&archive(&[sparse]), &workspace.path().join("to"), &spec).unwrap();
    assert_eq!(fs::metadata(workspace.path().join("to/a")).unwrap().len(), 1 << 40, "a hole takes no space");
}

#[test]
fn a_directory_that_is_repeated_with_large_attributes_is_refused() {
    if !is_root() {
        return;
    }
    let xattrs = vec![(b"user.large".to_vec(), vec![7; 1_000_000])];
    let repeated = vec![Entry { xattrs, ..entry("a", EntryKind::Directory) }; 80];
    let error = refused(&archive(&repeated), &UnpackSpec::default());
    assert_eq!(error.kind(), Kind::Unreadable, "{}", error.chain());
    assert!(error.chain().contains("repeats directories"), "{}", error.chain());
}

/// A header of this type and size, with a valid checksum.
fn raw_header(kind: u8, size: &str) -> Vec<u8> {
    let mut block = archive(&[file("x")])[..512].to_vec();
    block[156] = kind;
    block[124..136].copy_from_slice(format!("{size}\0").as_bytes());
    block[148..156].fill(b' ');
    let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
    block[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
    block
}

#[test]
fn a_damaged_archive_is_refused() {
    if !is_root() {
        return;
    }
    let good = archive(&[Entry { size: 5000, ..file("a") }]);
    let mut changed = good.clone();
    changed[3] ^= 1;
    let endless = raw_header(b'x', "77777777777");
    let many = raw_header(b'x', "00000000000").repeat(100);
    let unknown = raw_header(b'Z', "00000000000");
    let old_sparse = raw_header(b'S', "00000000000");
    for (bytes, expected) in [
        (&good[..512 + 5120], "ends too early"),
        (&good[..700], "ends too early"),
        (&[][..], "is empty"),
        (&changed, "checksum of a header is wrong"),
        (&[b'x'; 2000], "checksum of a header is wrong"),
        (&endless, "a header is too long"),
        (&many, "too many headers"),
        (&unknown, "unknown type 'Z'"),
        (&old_sparse, "--format=posix"),
        (&[&good[..], b"more"].concat(), "data behind its end"),
    ] {
        let error = refused(bytes, &UnpackSpec::default());
        assert_eq!(error.kind(), Kind::Unreadable, "{}", error.chain());
        assert!(error.chain().contains(expected), "{expected}: {}", error.chain());
    }
}

/// Extracts mutations of an archive until the time is over, for `make fuzz` longer than in other tests. Each is extracted or
/// refused, and none changes anything outside.
#[test]
fn a_mutated_archive_is_extracted_or_refused() {
    if !is_root() {
        return;
    }
    let seconds = std::env::var("ORLOP_FUZZ_SECONDS").ok().and_then(|text| text.parse().ok()).unwrap_or(3);
    let source = workspace();
    let from = source.path().join("from");
    fs::create_dir_all(from.join("a/b")).unwrap();
    fs::write(from.join("a/file"), vec![7; 1500]).unwrap();
    fs::hard_link(from.join("a/file"), from.join("a/again")).unwrap();
    trees::make_symlink("a/file", &from.join("link"));
    trees::make_sparse(&from.join("a/sparse"), 1 << 20, &[(4096, 100), (65_536, 10)]);
    trees::set_xattr(&from.join("a"), "system.posix_acl_default", &trees::acl(7));
    trees::set_xattr(&from.join("a/file"), "user.x", b"value");
    let (good, _) = pack_tree(&from);
    let seed = std::env::var("ORLOP_FUZZ_SEED").ok().and_then(|text| text.parse().ok()).unwrap_or(1);
    let mut random = Random::new(seed);
    let (deadline, mut tried, mut extracted) = (Instant::now() + Duration::from_secs(seconds), 0_u64, 0_u64);
    // In memory: each extraction is synced.
    let target = tempfile::tempdir_in("/dev/shm").unwrap();
    ["from", "to"].iter().for_each(|name| fs::create_dir(target.path().join(name)).unwrap());
    fs::write(target.path().join("secret"), "secret").unwrap();
    while Instant::now() < deadline {
        let bytes = mutate(&good, &mut random);
        let to = target.path().join("to");
        let spec = UnpackSpec { max_bytes: Some(1 << 20), ..UnpackSpec::default() };
        match unpack_to(&bytes, &to, &spec) {
            Ok(_) => extracted += 1,
            Err(error) => assert!(!error.chain().is_empty()),
        }
        tried += 1;
        let outside: Vec<_> =
            fs::read_dir(target.path()).unwrap().map(|found| found.unwrap().file_name()).collect();
        assert_eq!(outside.len(), 3, "seed {seed}, archive {tried}: {outside:?}");
        assert_eq!(fs::read(target.path().join("secret")).unwrap(), b"secret");
        fs::remove_dir_all(&to).unwrap();
        fs::create_dir(&to).unwrap();
    }
    eprintln!("{tried} archives, {extracted} extracted");
    assert!(tried > 10);
}

/// Changes a few bytes, mostly of headers, whose checksums are corrected; or moves blocks.
fn mutate(good: &[u8], random: &mut Random) -> Vec<u8> {
    let mut bytes = good.to_vec();
    let below = |random: &mut Random, n: usize| usize::try_from(random.pick(n as u64)).unwrap();
    for _ in 0..=below(random, 4) {
        let block = below(random, bytes.len() / 512) * 512;
        match below(random, 8) {
            0 => bytes.truncate((block + below(random, 512)).max(512)),
            1 => {
                let other = below(random, bytes.len() / 512) * 512;
                let copied = bytes[other..other + 512].to_vec();
                bytes[block..block + 512].copy_from_slice(&copied);
            }
            2 => bytes[block + 156] = b"01234567xgLKS\0Z"[below(random, 15)],
            _ => {
                let at = block + below(random, 512);
                bytes[at] =
                    [0, b'/', b'.', b'0', b'7', b'9', b'\n', b'=', 0x80, 0xff, b'x'][below(random, 11)];
            }
        }
        bytes.truncate((bytes.len() / 512).max(1) * 512);
        let block = block.min(bytes.len() - 512);
        if &bytes[block + 257..block + 262] == b"ustar" {
            let header = &mut bytes[block..block + 512];
            header[148..156].fill(b' ');
            let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
            header[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
        }
    }
    bytes
}
