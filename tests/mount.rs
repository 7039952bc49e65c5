//! Real mounts, each test in a mount namespace of its own.
#![expect(clippy::unwrap_used, reason = "a test that panics has failed")]

#[path = "ground/mounts.rs"]
mod mounts;
#[path = "ground/stop.rs"]
mod stop;

use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Stdio};
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use orlop::error::Kind;
use orlop::mount::users::Users;
use orlop::mount::{self, Api, Atime, MountFlags, attach, attach_by, detach, is_same, mounted_at};
use orlop::mount::{open_target, remove_target, shared_with_host};
use rustix::mount::{MountFlags as Bits, MountPropagationFlags as Propagation, UnmountFlags};

const BOTH: [Api; 2] = [Api::Detached, Api::Classic];

/// A tmpfs with a pool and a place for targets, in a mount namespace that only this test's thread is in.
struct World {
    base: PathBuf,
}

impl World {
    fn source(&self, name: &str) -> File {
        let dir = self.base.join("pool/volumes").join(name);
        fs::create_dir_all(&dir).unwrap();
        File::open(dir).unwrap()
    }

    fn target(&self, name: &str) -> PathBuf {
        self.base.join("kubelet").join(name)
    }

    fn publish(&self, source: &File, target: &Path, flags: MountFlags) {
        let at = open_target(target).unwrap();
        attach(source.as_fd(), at.as_fd(), flags).unwrap();
    }
}

/// Runs `test` in a new mount namespace, in a thread, with `base` a private tmpfs. Says why if it cannot.
fn in_new_namespace(test: impl FnOnce(&World) + Send) {
    if !mounts::possible() {
        return;
    }
    std::thread::scope(|scope| {
        let run = scope.spawn(|| {
            mounts::enter_new_namespace(Propagation::PRIVATE);
            let dir = tempfile::tempdir().unwrap();
            let base = dir.path().canonicalize().unwrap();
            rustix::mount::mount("tmpfs", &base, "tmpfs", Bits::empty(), c"mode=755").unwrap();
            fs::create_dir_all(base.join("kubelet")).unwrap();
            let world = World { base };
            let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| test(&world)));
            while rustix::mount::unmount(&world.base, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW).is_ok() {
            }
            done.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        });
        run.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    });
}

/// A process in a mount namespace of its own, as a container is; it ends when this is dropped.
struct Container {
    shell: Child,
    stdin: Option<ChildStdin>,
}

impl Container {
    /// Runs `script` there and waits until it is done.
    #[expect(clippy::disallowed_methods, reason = "a user of a volume is another process")]
    fn run(propagation: &str, script: &str) -> Self {
        let mut command = std::process::Command::new("unshare");
        command.args(["--mount", "--propagation", propagation, "sh"]);
        Self::start(command, script)
    }

    /// The same in this test's own namespace.
    #[expect(clippy::disallowed_methods, reason = "a user of a volume is another process")]
    fn run_here(script: &str) -> Self {
        Self::start(std::process::Command::new("sh"), script)
    }

    fn start(mut command: std::process::Command, script: &str) -> Self {
        command.args(["-ec", &format!("{script}\necho ready; read end")]);
        let mut shell = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let stdin = shell.stdin.take();
        let mut ready = [0; 6];
        shell.stdout.take().unwrap().read_exact(&mut ready).unwrap();
        Self { shell, stdin }
    }

    fn pid(&self) -> i32 {
        i32::try_from(self.shell.id()).unwrap()
    }

    fn table(&self) -> String {
        fs::read_to_string(format!("/proc/{}/mountinfo", self.pid())).unwrap()
    }

    fn end(self) {}
}

impl Drop for Container {
    fn drop(&mut self) {
        if let Some(mut stdin) = self.stdin.take() {
            let _gone = stdin.write_all(b"\n");
        }
        let _ended = self.shell.wait();
    }
}

fn lines_at(target: &Path) -> Vec<String> {
    let table = fs::read_to_string("/proc/thread-self/mountinfo").unwrap();
    let at = |line: &&str| line.split(' ').nth(4) == target.to_str();
    table.lines().filter(at).map(str::to_owned).collect()
}

#[test]
fn a_volume_appears_with_its_flags() {
    in_new_namespace(|world| {
        for (turn, api) in BOTH.into_iter().enumerate() {
            let source = world.source("a");
            let words: [(&[&str], &str); 5] = [
                (&[], "rw,nosuid,nodev,relatime"),
                (&["ro"], "ro,nosuid,nodev,relatime"),
                (&["suid", "dev"], "rw,relatime"),
                (&["noexec", "noatime", "nodiratime", "nosymfollow"], "all"),
                (&["strictatime"], "rw,nosuid,nodev"),
            ];
            for (number, (words, options)) in words.into_iter().enumerate() {
                let target = world.target(&format!("flags-{turn}-{number}"));
                assert_eq!(mounted_at(&target).unwrap(), None);
                let at = open_target(&target).unwrap();
                assert_eq!(mounted_at(&target).unwrap(), None);
                let flags = MountFlags::parse(words).unwrap();
                attach_by(api, source.as_fd(), at.as_fd(), flags).unwrap();

                let lines = lines_at(&target);
                assert_eq!(lines.len(), 1, "{api:?} {lines:?}");
                let found = lines[0].split(' ').nth(5).unwrap();
                let all = "rw,nosuid,nodev,noexec,noatime,nodiratime,nosymfollow";
                assert_eq!(found, if options == "all" { all } else { options }, "{api:?} {words:?}");
                let info = mounted_at(&target).unwrap().unwrap();
                assert_eq!(info.target, target);
                assert_eq!(info.root, Path::new("/pool/volumes/a"));
                assert!(is_same(&info, source.as_fd(), flags).unwrap(), "{api:?} {words:?}");
                let wrote = File::create(target.join("file"));
                assert_eq!(wrote.is_err(), flags.read_only);
                drop(wrote);
                detach(&target).unwrap();
                remove_target(&target).unwrap();
                assert!(!target.exists());
            }
        }
        assert!(lines_at(&std::env::temp_dir()).is_empty());
        let stages = fs::read_dir(std::env::temp_dir()).unwrap();
        let ours = format!(".orlop-{}-", std::process::id());
        let left = stages.flatten().filter(|dir| dir.file_name().to_string_lossy().starts_with(&ours));
        assert_eq!(left.count(), 0, "a stage was left behind");
    });
}

#[test]
fn what_the_pool_forbids_stays_forbidden() {
    in_new_namespace(|world| {
        for api in BOTH {
            let source = world.source("a");
            let pool = world.base.join("pool");
            rustix::mount::mount_bind(&pool, &pool).unwrap();
            let flags = Bits::BIND | Bits::NOEXEC | Bits::NOSYMFOLLOW | Bits::NOATIME;
            rustix::mount::mount_remount(&pool, flags, c"").unwrap();
            let inside = File::open(pool.join("volumes/a")).unwrap();
            let target = world.target("mount");
            let wanted = MountFlags::parse(&["exec", "symfollow", "suid"]).unwrap();
            attach_by(api, inside.as_fd(), open_target(&target).unwrap().as_fd(), wanted).unwrap();
            let info = mounted_at(&target).unwrap().unwrap();
            let expected = MountFlags { noexec: true, nosymfollow: true, ..wanted };
            assert_eq!(info.flags, MountFlags { atime: Some(Atime::Never), ..expected }, "{api:?}");
            assert!(is_same(&info, inside.as_fd(), wanted).unwrap());
            assert!(!is_same(&info, source.as_fd(), wanted).unwrap(), "opened by a mount without the flags");
            drop(inside);
            detach(&target).unwrap();
            rustix::mount::unmount(&pool, UnmountFlags::NOFOLLOW).unwrap();
        }
    });
}

#[test]
fn what_differs_is_not_the_same() {
    in_new_namespace(|world| {
        let (a, b) = (world.source("a"), world.source("ab"));
        let target = world.target("mount");
        let flags = MountFlags::default();
        let read_only = MountFlags { read_only: true, ..flags };
        world.publish(&a, &target, flags);
        let info = mounted_at(&target).unwrap().unwrap();
        assert!(is_same(&info, a.as_fd(), flags).unwrap());
        assert!(!is_same(&info, b.as_fd(), flags).unwrap(), "another directory");
        assert!(!is_same(&info, a.as_fd(), read_only).unwrap(), "other flags");
        assert!(
            !is_same(&info, File::open(&world.base).unwrap().as_fd(), flags).unwrap(),
            "a directory above"
        );

        // A directory made anew under the name of a removed one is another.
        let volumes = world.base.join("pool/volumes");
        fs::remove_dir(volumes.join("a")).unwrap();
        let info = mounted_at(&target).unwrap().unwrap();
        assert!(info.root_deleted);
        assert!(!is_same(&info, world.source("a").as_fd(), flags).unwrap());
        assert_eq!(is_same(&info, a.as_fd(), flags).unwrap_err().kind(), Kind::Internal);
        detach(&target).unwrap();

        // One that is moved stays the same.
        world.publish(&b, &target, flags);
        fs::rename(volumes.join("ab"), volumes.join("c")).unwrap();
        assert!(is_same(&mounted_at(&target).unwrap().unwrap(), b.as_fd(), flags).unwrap());
        detach(&target).unwrap();
    });
}

#[test]
fn a_pool_on_a_detached_mount_can_be_published_and_compared() {
    use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsmount, fsopen};
    in_new_namespace(|world| {
        let fs = fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC).unwrap();
        fsconfig_create(&fs).unwrap();
        let root = fsmount(fs.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty()).unwrap();
        for name in ["a", "b"] {
            rustix::fs::mkdirat(&root, name, rustix::fs::Mode::RWXU).unwrap();
        }
        let open = |name| {
            let flags = rustix::fs::OFlags::PATH | rustix::fs::OFlags::CLOEXEC;
            rustix::fs::openat(&root, name, flags, rustix::fs::Mode::empty()).unwrap()
        };
        let (a, b) = (open("a"), open("b"));
        let target = world.target("mount");
        let at = open_target(&target).unwrap();
        if let Err(error) = attach(a.as_fd(), at.as_fd(), MountFlags::default()) {
            assert!(std::env::var_os("CI").is_none(), "with CI set nothing is skipped: {}", error.chain());
            eprintln!("skipped: this kernel clones no part of a detached mount: {}", error.chain());
            return;
        }
        let info = mounted_at(&target).unwrap().unwrap();
        assert!(is_same(&info, a.as_fd(), MountFlags::default()).unwrap());
        assert!(!is_same(&info, b.as_fd(), MountFlags::default()).unwrap());
        assert!(!is_same(&info, a.as_fd(), MountFlags { read_only: true, ..info.flags }).unwrap());
        let users = Users::new("/proc".into());
        assert_eq!(users.of(a.as_fd()).unwrap().len(), 1);
        assert!(users.of(b.as_fd()).unwrap().is_empty());
        detach(&target).unwrap();
        assert!(users.of(a.as_fd()).unwrap().is_empty());
    });
}

#[test]
fn nobody_ever_sees_a_read_only_volume_writable() {
    in_new_namespace(|world| {
        let base = &world.base;
        rustix::mount::mount_change(base, Propagation::SHARED).unwrap();
        let host = Container::run("unchanged", "true");
        let table = format!("/proc/{}/mountinfo", host.pid());
        let source = world.source("a");
        for api in BOTH {
            let target = world.target(&format!("{api:?}"));
            let path = target.to_str().unwrap();
            let (stop, seen) = (AtomicBool::new(false), std::sync::Mutex::new([0_u64; 2]));
            std::thread::scope(|scope| {
                scope.spawn(|| {
                    // In the host's table as in ours.
                    while !stop.load(Ordering::Relaxed) {
                        let table = fs::read_to_string(&table).unwrap();
                        let options = table.lines().filter_map(|line| {
                            let mut fields = line.split(' ').skip(4);
                            fields.next().filter(|at| *at == path).and_then(|_| fields.next())
                        });
                        for options in options {
                            seen.lock().unwrap()[usize::from(options.starts_with("ro,nosuid,nodev"))] += 1;
                        }
                    }
                });
                let _stop = stop::Stop(&stop);
                let at = open_target(&target).unwrap();
                let read_only = MountFlags { read_only: true, ..MountFlags::default() };
                let (start, mut turns) = (Instant::now(), 0);
                while turns < 300
                    || (seen.lock().unwrap()[1] < 30 && start.elapsed() < Duration::from_secs(20))
                {
                    turns += 1;
                    attach_by(api, source.as_fd(), at.as_fd(), read_only).unwrap();
                    assert!(File::create(target.join("file")).is_err());
                    detach(&target).unwrap();
                }
            });
            let [wrong, right] = *seen.lock().unwrap();
            assert_eq!(wrong, 0, "{api:?}: seen without its flags");
            assert!(right > 0, "{api:?}: the watcher saw nothing");
        }
        host.end();
    });
}

#[test]
fn a_mount_propagates_to_the_host_and_so_does_its_end() {
    in_new_namespace(|world| {
        let kubelet = world.base.join("kubelet");
        assert!(!shared_with_host(&kubelet).unwrap());
        rustix::mount::mount_bind(&kubelet, &kubelet).unwrap();
        rustix::mount::mount_change(&kubelet, Propagation::SHARED).unwrap();
        assert!(shared_with_host(&kubelet).unwrap());
        let host = Container::run("unchanged", "true");

        // The pool is shared too; what is mounted in it later must not show in the volume.
        let pool = world.base.join("pool");
        let source = world.source("a");
        drop(source);
        rustix::mount::mount_bind(&pool, &pool).unwrap();
        rustix::mount::mount_change(&pool, Propagation::SHARED).unwrap();
        let inner = pool.join("volumes/a/inner");
        fs::create_dir(&inner).unwrap();
        for api in BOTH {
            let source = File::open(pool.join("volumes/a")).unwrap();
            let target = kubelet.join(format!("{api:?}"));
            let path = target.to_str().unwrap();
            let read_only = MountFlags { read_only: true, ..MountFlags::default() };
            attach_by(api, source.as_fd(), open_target(&target).unwrap().as_fd(), read_only).unwrap();
            let line = host.table().lines().find(|line| line.contains(path)).unwrap().to_owned();
            assert!(line.split(' ').nth(5).unwrap().starts_with("ro,"), "{api:?} {line}");

            rustix::mount::mount("tmpfs", &inner, "tmpfs", Bits::empty(), None).unwrap();
            assert_eq!(mounted_at(&target.join("inner")).unwrap(), None, "{api:?}: the pool leaks in");
            rustix::mount::unmount(&inner, UnmountFlags::NOFOLLOW).unwrap();

            let users = Users::new("/proc".into()).of(source.as_fd()).unwrap();
            assert_eq!(users.len(), 1, "{api:?}: copies of one mount are one use: {users:?}");
            detach(&target).unwrap();
            assert!(!host.table().contains(path), "{api:?}");
        }
        host.end();
    });
}

#[test]
fn a_stack_of_mounts_is_taken_down() {
    in_new_namespace(|world| {
        let (a, b) = (world.source("a"), world.source("b"));
        let target = world.target("mount");
        for source in [&a, &b, &a, &b] {
            world.publish(source, &target, MountFlags::default());
        }
        assert_eq!(lines_at(&target).len(), 4);
        let info = mounted_at(&target).unwrap().unwrap();
        assert!(is_same(&info, b.as_fd(), MountFlags::default()).unwrap(), "the topmost counts");
        // The same by the way for broken mounts and old kernels.
        assert_eq!(mount::mountinfo::by_target(target.to_str().unwrap().as_bytes()).unwrap(), Some(info));
        detach(&target).unwrap();
        assert!(lines_at(&target).is_empty());
        detach(&target).unwrap();
        remove_target(&target).unwrap();
        detach(&target).unwrap();
        detach(&world.target("no/such/mount")).unwrap();
    });
}

#[test]
fn a_link_at_the_target_is_refused_and_one_above_it_is_followed() {
    in_new_namespace(|world| {
        let source = world.source("a");
        let real = world.target("real");
        fs::create_dir(&real).unwrap();
        let link = world.target("link");
        std::os::unix::fs::symlink(&real, &link).unwrap();
        assert_eq!(open_target(&link).unwrap_err().kind(), Kind::Invalid);

        // A volume at the end of the link is none at the link, and is not unmounted by it.
        world.publish(&source, &real, MountFlags::default());
        assert_eq!(mounted_at(&link).unwrap(), None);
        detach(&link).unwrap();
        assert!(mounted_at(&real).unwrap().is_some());
        detach(&real).unwrap();

        let below = link.join("mount");
        world.publish(&source, &below, MountFlags::default());
        assert_eq!(mounted_at(&below).unwrap().unwrap().target, real.join("mount"));
        detach(&below).unwrap();
        assert!(lines_at(&real.join("mount")).is_empty());
    });
}

#[test]
fn a_busy_mount_names_who_holds_it() {
    in_new_namespace(|world| {
        let source = world.source("a");
        let target = world.target("mount");
        world.publish(&source, &target, MountFlags::default());
        let inside = Container::run("private", &format!("cd '{}'", target.display()));
        // The container has a copy of the mount; only a file of ours keeps ours busy.
        let file = File::create(target.join("open")).unwrap();
        let error = detach(&target).unwrap_err();
        assert_eq!(error.kind(), Kind::InUse);
        let text = error.chain();
        let holder = format!("process {} (", std::process::id());
        assert!(text.contains(&holder) && text.contains(target.to_str().unwrap()), "{text}");
        assert!(mounted_at(&target).unwrap().is_some(), "a busy mount is left");
        drop(file);
        inside.end();

        let inner = target.join("inner");
        fs::create_dir(&inner).unwrap();
        rustix::mount::mount("tmpfs", &inner, "tmpfs", Bits::empty(), None).unwrap();
        let error = detach(&target).unwrap_err();
        assert_eq!(error.kind(), Kind::InUse);
        assert!(error.chain().contains(inner.to_str().unwrap()), "{}", error.chain());
        assert_eq!(remove_target(&target).unwrap_err().kind(), Kind::InUse);
        detach(&inner).unwrap();
        detach(&target).unwrap();
    });
}

#[test]
fn a_path_as_long_as_the_kernel_takes_can_be_used() {
    in_new_namespace(|world| {
        let source = world.source("a");
        let mut deep = world.target("deep");
        while deep.as_os_str().len() + 201 < 4095 {
            deep.push("d e".repeat(66) + "\\\n");
        }
        let name = "e".repeat(4095 - deep.as_os_str().len() - 1);
        fs::create_dir_all(&deep).unwrap();
        let target = deep.join(name);
        assert_eq!(target.as_os_str().len(), 4095);
        world.publish(&source, &target, MountFlags::default());
        let info = mounted_at(&target).unwrap().unwrap();
        assert_eq!(info.target, target);
        assert!(is_same(&info, source.as_fd(), MountFlags::default()).unwrap());
        assert_eq!(Users::new("/proc".into()).of(source.as_fd()).unwrap()[0].target, target);
        detach(&target).unwrap();
        remove_target(&target).unwrap();
        assert_eq!(open_target(&deep.join("e".repeat(300))).unwrap_err().kind(), Kind::Invalid);
    });
}

#[test]
fn a_user_in_another_namespace_is_found_until_it_ends() {
    in_new_namespace(|world| {
        let (a, ab, empty) = (world.source("a"), world.source("ab"), world.source("empty"));
        fs::create_dir(world.base.join("pool/volumes/a/sub dir")).unwrap();
        let base = world.base.display();
        // A volume, a directory in one, and a file: each mounted where only the container sees it.
        let script = format!(
            "mkdir -p '{base}/c/one' '{base}/c/two' '{base}/c/all'; : > '{base}/c/file'; : > '{base}/pool/volumes/ab/f'
             mount --bind '{base}/pool/volumes/a' '{base}/c/one'
             mount --bind '{base}/pool/volumes/a/sub dir' '{base}/c/two'
             mount --bind '{base}/pool/volumes/ab/f' '{base}/c/file'
             mount --bind '{base}/pool' '{base}/c/all'"
        );
        let container = Container::run("private", &script);
        let users = Users::new("/proc".into());
        let found = users.of(a.as_fd()).unwrap();
        let targets: Vec<_> = found.iter().map(|user| user.target.clone()).collect();
        assert_eq!(targets, [world.base.join("c/one"), world.base.join("c/two")]);
        assert!(
            found.iter().all(|user| user.pid == Some(container.pid()) && user.command == "sh"),
            "{found:?}"
        );
        let each = users.of_each(&[a.as_fd(), ab.as_fd(), empty.as_fd()]).unwrap();
        assert_eq!(each.iter().map(Vec::len).collect::<Vec<_>>(), [2, 1, 0]);
        assert_eq!(users.scans(), 2);

        // The container does not keep the volume published here, and says so to nobody.
        let target = world.target("mount");
        world.publish(&a, &target, MountFlags::default());
        let ours = users.of(a.as_fd()).unwrap();
        assert_eq!(ours.iter().filter(|user| user.pid.is_none()).count(), 1);
        detach(&target).unwrap();
        container.end();
        assert!(users.of(a.as_fd()).unwrap().is_empty());
        assert!(users.of(ab.as_fd()).unwrap().is_empty());
    });
}

#[test]
fn a_user_is_found_behind_a_process_with_a_root_of_its_own() {
    in_new_namespace(|world| {
        let a = world.source("a");
        let base = world.base.display();
        // The first process of the namespace sees nothing from its root; the second sees the mount.
        let script = format!(
            "mkdir -p '{base}/c' '{base}/jail/bin'; mount --bind '{base}/pool/volumes/a' '{base}/c'
             sleep 1000 & mount --rbind /bin '{base}/jail/bin'
             for lib in /lib /lib64 /usr; do mkdir -p '{base}/jail'$lib; mount --rbind $lib '{base}/jail'$lib; done
             echo $! > '{base}/sleep'"
        );
        let jailed = format!("{script}\necho ready; exec chroot '{base}/jail' /bin/sh -c 'read end'");
        #[expect(clippy::disallowed_methods, reason = "a user of a volume is another process")]
        let mut command = std::process::Command::new("unshare");
        command.args(["--mount", "--propagation", "private", "sh", "-ec", &jailed]);
        let mut shell = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        shell.stdout.take().unwrap().read_exact(&mut [0; 6]).unwrap();
        let root = format!("/proc/{}/root", shell.id());
        while fs::read_link(&root).unwrap() == Path::new("/") {
            std::thread::yield_now();
        }
        let found = Users::new("/proc".into()).of(a.as_fd()).unwrap();
        let sleep: i32 = fs::read_to_string(world.base.join("sleep")).unwrap().trim().parse().unwrap();
        rustix::process::kill_process(
            rustix::process::Pid::from_raw(sleep).unwrap(),
            rustix::process::Signal::KILL,
        )
        .unwrap();
        drop(shell.stdin.take());
        shell.wait().unwrap();
        assert_eq!(found.len(), 1, "{found:?}");
        assert_eq!(found[0].pid, Some(sleep));
    });
}

#[test]
fn callers_who_ask_at_once_share_scans() {
    in_new_namespace(|world| {
        let sources: Vec<File> = (0..32).map(|number| world.source(&format!("v{number}"))).collect();
        for number in 0..200 {
            world.publish(&sources[0], &world.target(&format!("m{number}")), MountFlags::default());
        }
        world.publish(&sources[7], &world.target("seven"), MountFlags::default());
        let base = world.base.display();
        let container = Container::run(
            "private",
            &format!("mkdir '{base}/c'; mount --bind '{base}/pool/volumes/v9' '{base}/c'"),
        );
        let users = Users::new("/proc".into());
        let (start, rounds) = (Barrier::new(sources.len()), 20);
        // Threads that are in this namespace: a thread begins where its maker is.
        std::thread::scope(|scope| {
            for (number, source) in sources.iter().enumerate() {
                let (users, start) = (&users, &start);
                scope.spawn(move || {
                    start.wait();
                    for _ in 0..rounds {
                        let found = users.of(source.as_fd()).unwrap();
                        let expected = match number {
                            0 => 400, // here, and the copies in the container
                            7 => 2,
                            9 => 1,
                            _ => 0,
                        };
                        assert_eq!(found.len(), expected, "volume {number}");
                    }
                });
            }
        });
        let asked = sources.len() as u64 * rounds;
        assert!(users.scans() < asked / 4, "{} scans for {asked} questions", users.scans());
        container.end();
    });
}

#[test]
fn an_answer_is_never_older_than_its_question() {
    in_new_namespace(|world| {
        let sources: Vec<File> = (0..4).map(|number| world.source(&format!("v{number}"))).collect();
        let users = Users::new("/proc".into());
        std::thread::scope(|scope| {
            for (number, source) in sources.iter().enumerate() {
                let users = &users;
                scope.spawn(move || {
                    let target = world.target(&format!("m{number}"));
                    for turn in 0..100 {
                        world.publish(source, &target, MountFlags::default());
                        assert_eq!(users.of(source.as_fd()).unwrap().len(), 1, "turn {turn}");
                        detach(&target).unwrap();
                        assert_eq!(users.of(source.as_fd()).unwrap().len(), 0, "turn {turn}");
                    }
                });
            }
        });
    });
}

/// Figures for whoever changes the scan: `cargo test --release --test mount -- --ignored --nocapture`.
#[test]
#[ignore = "a measurement"]
fn how_long_a_scan_takes() {
    in_new_namespace(|world| {
        let users = Users::new("/proc".into());
        let source = world.source("a");
        let ask = || assert!(users.of(source.as_fd()).unwrap().is_empty());
        let crowd: Vec<Container> = (0..60).map(|_| Container::run_here("true")).collect();
        let mut mounts = 0;
        for wanted in [50, 500, 2000] {
            for number in mounts..wanted {
                let volume = world.source(&format!("v{number}"));
                world.publish(&volume, &world.target(&format!("m{number}")), MountFlags::default());
            }
            mounts = wanted;
            for namespaces in [0, 10] {
                let others: Vec<_> = (0..namespaces).map(|_| Container::run("private", "true")).collect();
                let mut times: Vec<Duration> = (0..100)
                    .map(|_| {
                        let start = Instant::now();
                        ask();
                        start.elapsed()
                    })
                    .collect();
                times.sort_unstable();
                let is_process =
                    |entry: &fs::DirEntry| entry.file_name().to_string_lossy().parse::<u32>().is_ok();
                let processes = fs::read_dir("/proc").unwrap().flatten().filter(is_process).count();
                let (before, start) = (users.scans(), Instant::now());
                std::thread::scope(|scope| {
                    (0..32).for_each(|_| drop(scope.spawn(|| (0..10).for_each(|_| ask()))))
                });
                println!(
                    "{mounts} mounts, in {namespaces} other namespaces too, {processes} processes: median {:?}, \
                     p98 {:?}; 32 callers, 320 questions: {:?}, {} scans",
                    times[50],
                    times[97],
                    start.elapsed(),
                    users.scans() - before
                );
                drop(others);
            }
        }
        drop(crowd);
    });
}
