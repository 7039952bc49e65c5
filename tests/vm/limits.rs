//! Limits of pools with project quotas as the command line shows and changes them.

use std::fs::{self, File};
use std::os::fd::AsFd as _;
use std::path::Path;
use std::time::Duration;

use orlop::engine::Engine;
use orlop::error::Kind;
use orlop::fs::audit::Strays;
use orlop::fs::project::{self, Project};
use orlop::volume::Enforced;

use super::quota_pools::{as_tenant, data, each_filesystem, fill, id_of, limited, open, quota};
use crate::common::disk::run;
use crate::common::pool::{MIB, check, id};

const SIZE: u64 = 8 * MIB;

fn set(path: &Path, id: u32) {
    let project = Project { id, is_inherited: path.is_dir() && id != 0 };
    project::set(File::open(path).unwrap().as_fd(), project).unwrap();
}

fn audit(engine: &Engine, volume: &str, mend: bool) -> Strays {
    engine.audit(&id(volume), mend).unwrap().unwrap().run(Duration::MAX).unwrap().unwrap()
}

#[test]
fn a_file_that_left_its_project_is_not_counted_until_an_audit_puts_it_back() {
    each_filesystem(|name, pool| {
        let engine = open(pool);
        engine.create(&limited("v", SIZE, 0)).unwrap();
        let (file, directory) = (data(pool, "v").join("file"), data(pool, "v").join("directory"));
        fs::create_dir(&directory).unwrap();
        fs::write(&file, vec![1; 3 << 20]).unwrap();
        // As its owner can, without a privilege.
        let as_owner = format!(
            "chown 1000 {0} {1} && setpriv --reuid 1000 --clear-groups chattr -p 0 {0} && setpriv --reuid 1000 --clear-groups chattr -p 0 -P {1}",
            file.display(),
            directory.display()
        );
        run("sh", &["-c", &as_owner]);
        fs::write(directory.join("more"), vec![1; 1 << 20]).unwrap();
        run("sync", &["-f", pool.to_str().unwrap()]);
        let project = id_of(pool, "v");
        assert!(quota(pool, project).bytes < MIB, "{name}: it is not counted");
        let found = audit(&engine, "v", false);
        assert_eq!((found.count, found.put_back, found.failed), (3, 0, 0), "{name}: {found:?}");
        assert!(found.bytes >= 4 * MIB, "{name}: {found:?}");
        let mended = audit(&engine, "v", true);
        assert_eq!((mended.put_back, mended.failure), (3, None), "{name}");
        let used = quota(pool, project).bytes;
        assert!((4 * MIB..5 * MIB).contains(&used), "{name}: {used}");
        assert_eq!(audit(&engine, "v", false), Strays::default(), "{name}");
        check(&engine, pool);
    });
}

#[test]
fn files_are_put_back_into_a_volume_that_is_full() {
    each_filesystem(|name, pool| {
        let engine = open(pool);
        engine.create(&limited("v", SIZE, 0)).unwrap();
        let (first, second) = (data(pool, "v").join("first"), data(pool, "v").join("second"));
        fill(&first);
        set(&first, 0);
        fill(&second);
        let mended = audit(&engine, "v", true);
        assert_eq!((mended.count, mended.put_back, &mended.failure), (1, 1, &None), "{name}");
        assert!(quota(pool, id_of(pool, "v")).bytes > SIZE, "{name}: more than its size");
        let refused = as_tenant(&format!("head -c 1M /dev/zero 2>&1 >{}.x || true", second.display()));
        assert!(!refused.is_empty(), "{name}: the next write fails");
    });
}

#[test]
fn a_volume_shrinks_to_what_it_uses_and_the_next_write_stops_there() {
    each_filesystem(|name, pool| {
        let engine = open(pool);
        let volume = engine.create(&limited("v", SIZE, 0)).unwrap();
        let file = data(pool, "v").join("file");
        fs::write(&file, vec![1; 3 << 20]).unwrap();
        let refused = engine.shrink(&volume.id, 2 * MIB).unwrap_err();
        assert_eq!(refused.kind(), Kind::OutOfRange, "{name}");
        let text = refused.chain();
        assert!(text.contains("uses 3") && text.contains("more than 2Mi"), "{name}: {text}");
        assert_eq!(quota(pool, id_of(pool, "v")).max_bytes, SIZE, "{name}: unchanged");
        let shrunk = engine.shrink(&volume.id, 4 * MIB).unwrap().unwrap();
        assert_eq!((shrunk.size, shrunk.enforced), (4 * MIB, Enforced::Bytes), "{name}");
        let shown = rustix::fs::statvfs(data(pool, "v")).unwrap();
        assert_eq!(shown.f_blocks * shown.f_frsize, 4 * MIB, "{name}: df shows the new size");
        let written = fill(&file);
        assert!((3 * MIB..=4 * MIB).contains(&written), "{name}: {written}");
        check(&engine, pool);
    });
}
