//! Attaching, detaching and comparing mounts, and finding the users of a volume.

use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Barrier, PoisonError, RwLock};
use std::time::{Duration, Instant};

use orlop::error::Kind;
use orlop::mount::location::MountedDir;
use orlop::mount::users::Users;
use orlop::mount::{self, Api, Atime, MountFlags, attach, attach_by, detach, is_same, mounted_at};
use orlop::mount::{open_target, remove_target, shared_with_host};
use rustix::mount::{MountFlags as MsFlags, MountPropagationFlags as Propagation, UnmountFlags};

use crate::common::isolation;
use crate::common::wait::StopOnDrop;

const BOTH: [Api; 2] = [Api::Detached, Api::Legacy];

/// Held for writing while a process is started, and for reading by tests that attach and detach in a loop: until its
/// `execve`, the new process has a copy of every descriptor of this one, and these keep a mount busy.
static STARTING_PROCESS: RwLock<()> = RwLock::new(());

/// A tmpfs with a pool and a directory for targets, in a mount namespace of the test's thread.
struct Node {
    base: PathBuf,
}

impl Node {
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

/// Runs `test` on a new [`Node`].
fn on_a_node(test: impl FnOnce(&Node) + Send) {
    if !isolation::is_root() {
        return;
    }
    isolation::on_own_tmpfs(c"mode=755", |base| {
        fs::create_dir_all(base.join("kubelet")).unwrap();
        test(&Node { base: base.to_owned() });
    });
}

/// A process in a mount namespace of its own, like a container. It ends when this is dropped.
struct Container {
    shell: Child,
    stdin: Option<ChildStdin>,
}

impl Container {
    /// Starts a container and runs `script` in it.
    #[expect(clippy::disallowed_methods, reason = "the users of a volume are other processes")]
    fn run(propagation: &str, script: &str) -> Self {
        let mut command = Command::new("unshare");
        command.args(["--mount", "--propagation", propagation, "sh"]);
        Self::start(command, script)
    }

    /// Starts a process in the namespace of the test and runs `script` in it.
    #[expect(clippy::disallowed_methods, reason = "the users of a volume are other processes")]
    fn run_here(script: &str) -> Self {
        Self::start(Command::new("sh"), script)
    }

    fn start(mut command: Command, script: &str) -> Self {
        command.args(["-ec", &format!("{script}\necho ready; read end")]);
        let mut shell = spawn(&mut command);
        let stdin = shell.stdin.take();
        let mut ready = [0; 6];
        shell.stdout.take().unwrap().read_exact(&mut ready).unwrap();
        Self { shell, stdin }
    }

    fn pid(&self) -> i32 {
        i32::try_from(self.shell.id()).unwrap()
    }

    fn mountinfo(&self) -> String {
        fs::read_to_string(format!("/proc/{}/mountinfo", self.pid())).unwrap()
    }

    fn end(self) {}
}

impl Drop for Container {
    fn drop(&mut self) {
        if let Some(mut stdin) = self.stdin.take() {
            let _ = stdin.write_all(b"\n");
        }
        let _ = self.shell.wait();
    }
}

/// Starts a process that talks through pipes. Returns after its `execve`.
fn spawn(command: &mut Command) -> Child {
    let _starting = STARTING_PROCESS.write().unwrap_or_else(PoisonError::into_inner);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap()
}

/// Runs one turn of a loop that attaches and detaches.
fn undisturbed<T>(turn: impl FnOnce() -> T) -> T {
    let _no_start = STARTING_PROCESS.read().unwrap_or_else(PoisonError::into_inner);
    turn()
}

/// The lines of the mount table for the mounts at a path.
fn lines_at(target: &Path) -> Vec<String> {
    let table = fs::read_to_string("/proc/thread-self/mountinfo").unwrap();
    let at = |line: &&str| line.split(' ').nth(4) == target.to_str();
    table.lines().filter(at).map(str::to_owned).collect()
}

#[test]
fn a_volume_is_mounted_with_the_requested_flags() {
    on_a_node(|node| {
        for (turn, api) in BOTH.into_iter().enumerate() {
            let source = node.source("a");
            let words: [(&[&str], &str); 5] = [
                (&[], "rw,nosuid,nodev,relatime"),
                (&["ro"], "ro,nosuid,nodev,relatime"),
                (&["suid", "dev"], "rw,relatime"),
                (&["noexec", "noatime", "nodiratime", "nosymfollow"], "all"),
                (&["strictatime"], "rw,nosuid,nodev"),
            ];
            for (number, (words, options)) in words.into_iter().enumerate() {
                let target = node.target(&format!("flags-{turn}-{number}"));
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
        let entries = fs::read_dir(std::env::temp_dir()).unwrap();
        let thread = rustix::thread::gettid().as_raw_nonzero();
        let ours = format!(".orlop-{}-{thread}-", std::process::id());
        let left = entries.flatten().filter(|dir| dir.file_name().to_string_lossy().starts_with(&ours));
        assert_eq!(left.count(), 0, "a staging directory was left");
    });
}

#[test]
fn flags_of_the_pools_mount_cannot_be_removed() {
    on_a_node(|node| {
        for api in BOTH {
            let source = node.source("a");
            let pool = node.base.join("pool");
            rustix::mount::mount_bind(&pool, &pool).unwrap();
            let flags = MsFlags::BIND | MsFlags::NOEXEC | MsFlags::NOSYMFOLLOW | MsFlags::NOATIME;
            rustix::mount::mount_remount(&pool, flags, c"").unwrap();
            let inside = File::open(pool.join("volumes/a")).unwrap();
            let target = node.target("mount");
            let requested = MountFlags::parse(&["exec", "symfollow", "suid"]).unwrap();
            attach_by(api, inside.as_fd(), open_target(&target).unwrap().as_fd(), requested).unwrap();
            let info = mounted_at(&target).unwrap().unwrap();
            let expected = MountFlags { noexec: true, nosymfollow: true, ..requested };
            assert_eq!(info.flags, MountFlags { atime: Some(Atime::Never), ..expected }, "{api:?}");
            assert!(is_same(&info, inside.as_fd(), requested).unwrap());
            assert!(
                is_same(&info, source.as_fd(), requested).unwrap(),
                "the pool may have been remounted without the flags since"
            );
            drop(inside);
            detach(&target).unwrap();
            rustix::mount::unmount(&pool, UnmountFlags::NOFOLLOW).unwrap();
        }
    });
}

#[test]
fn a_mount_of_another_directory_or_with_other_flags_is_not_the_same() {
    on_a_node(|node| {
        let (a, b) = (node.source("a"), node.source("ab"));
        let target = node.target("mount");
        let flags = MountFlags::default();
        let read_only = MountFlags { read_only: true, ..flags };
        node.publish(&a, &target, flags);
        let info = mounted_at(&target).unwrap().unwrap();
        assert!(is_same(&info, a.as_fd(), flags).unwrap());
        assert!(!is_same(&info, b.as_fd(), flags).unwrap(), "another directory");
        assert!(!is_same(&info, a.as_fd(), read_only).unwrap(), "other flags");
        assert!(
            !is_same(&info, File::open(&node.base).unwrap().as_fd(), flags).unwrap(),
            "a directory above"
        );

        // A new directory with the name of a removed one is another directory.
        let volumes = node.base.join("pool/volumes");
        fs::remove_dir(volumes.join("a")).unwrap();
        let info = mounted_at(&target).unwrap().unwrap();
        assert!(info.root_deleted);
        assert!(!is_same(&info, node.source("a").as_fd(), flags).unwrap());
        assert_eq!(is_same(&info, a.as_fd(), flags).unwrap_err().kind(), Kind::Internal);
        detach(&target).unwrap();

        // A moved directory is still the same.
        node.publish(&b, &target, flags);
        fs::rename(volumes.join("ab"), volumes.join("c")).unwrap();
        assert!(is_same(&mounted_at(&target).unwrap().unwrap(), b.as_fd(), flags).unwrap());
        detach(&target).unwrap();
    });
}

#[test]
fn a_pool_on_a_detached_mount_can_be_published() {
    use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsmount, fsopen};
    on_a_node(|node| {
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
        let target = node.target("mount");
        let at = open_target(&target).unwrap();
        if let Err(error) = attach(a.as_fd(), at.as_fd(), MountFlags::default()) {
            return isolation::skip(&format!(
                "this kernel cannot clone a part of a detached mount: {}",
                error.chain()
            ));
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
fn a_read_only_mount_is_never_visible_as_writable() {
    on_a_node(|node| {
        let base = &node.base;
        rustix::mount::mount_change(base, Propagation::SHARED).unwrap();
        let host = Container::run("unchanged", "true");
        let table = format!("/proc/{}/mountinfo", host.pid());
        let source = node.source("a");
        for api in BOTH {
            let target = node.target(&format!("{api:?}"));
            let path = target.to_str().unwrap();
            let (stop, seen) = (AtomicBool::new(false), std::sync::Mutex::new([0_u64; 2]));
            std::thread::scope(|scope| {
                scope.spawn(|| {
                    // The mount propagates to the table of the host.
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
                let _stop = StopOnDrop(&stop);
                let at = open_target(&target).unwrap();
                let read_only = MountFlags { read_only: true, ..MountFlags::default() };
                let (start, mut turns) = (Instant::now(), 0);
                while turns < 300
                    || (seen.lock().unwrap()[1] < 30 && start.elapsed() < Duration::from_secs(20))
                {
                    turns += 1;
                    undisturbed(|| {
                        attach_by(api, source.as_fd(), at.as_fd(), read_only).unwrap();
                        assert!(File::create(target.join("file")).is_err());
                        detach(&target).unwrap();
                    });
                }
            });
            let [wrong, right] = *seen.lock().unwrap();
            assert_eq!(wrong, 0, "{api:?}: the mount was visible without its flags");
            assert!(right > 0, "{api:?}: the watcher saw nothing");
        }
        host.end();
    });
}

#[test]
fn mounts_and_unmounts_propagate_to_the_host() {
    on_a_node(|node| {
        let kubelet = node.base.join("kubelet");
        assert!(!shared_with_host(&kubelet).unwrap());
        rustix::mount::mount_bind(&kubelet, &kubelet).unwrap();
        rustix::mount::mount_change(&kubelet, Propagation::SHARED).unwrap();
        assert!(shared_with_host(&kubelet).unwrap());
        let host = Container::run("unchanged", "true");

        // The pool is shared too: a mount that is made in it later must not appear in the volume.
        let pool = node.base.join("pool");
        let source = node.source("a");
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
            let line = host.mountinfo().lines().find(|line| line.contains(path)).unwrap().to_owned();
            assert!(line.split(' ').nth(5).unwrap().starts_with("ro,"), "{api:?} {line}");

            rustix::mount::mount("tmpfs", &inner, "tmpfs", MsFlags::empty(), None).unwrap();
            assert_eq!(
                mounted_at(&target.join("inner")).unwrap(),
                None,
                "{api:?}: a mount propagated from the pool"
            );
            rustix::mount::unmount(&inner, UnmountFlags::NOFOLLOW).unwrap();

            let users = Users::new("/proc".into()).of(source.as_fd()).unwrap();
            assert_eq!(users.len(), 1, "{api:?}: copies of one mount count once: {users:?}");
            detach(&target).unwrap();
            assert!(!host.mountinfo().contains(path), "{api:?}");
        }
        host.end();
    });
}

#[test]
fn stacked_mounts_are_all_unmounted() {
    on_a_node(|node| {
        let (a, b) = (node.source("a"), node.source("b"));
        let target = node.target("mount");
        for source in [&a, &b, &a, &b] {
            node.publish(source, &target, MountFlags::default());
        }
        assert_eq!(lines_at(&target).len(), 4);
        let info = mounted_at(&target).unwrap().unwrap();
        assert!(is_same(&info, b.as_fd(), MountFlags::default()).unwrap(), "the topmost mount counts");
        // Broken mounts and old kernels take this way.
        assert_eq!(mount::mountinfo::by_target(target.to_str().unwrap().as_bytes()).unwrap(), Some(info));
        detach(&target).unwrap();
        assert!(lines_at(&target).is_empty());
        detach(&target).unwrap();
        remove_target(&target).unwrap();
        detach(&target).unwrap();
        detach(&node.target("no/such/mount")).unwrap();
    });
}

#[test]
fn a_symlink_as_target_is_refused_and_one_above_it_is_followed() {
    on_a_node(|node| {
        let source = node.source("a");
        let real = node.target("real");
        fs::create_dir(&real).unwrap();
        let link = node.target("link");
        std::os::unix::fs::symlink(&real, &link).unwrap();
        assert_eq!(open_target(&link).unwrap_err().kind(), Kind::Invalid);

        // A mount at the symlink's destination is not a mount at the symlink, and is not unmounted through it.
        node.publish(&source, &real, MountFlags::default());
        assert_eq!(mounted_at(&link).unwrap(), None);
        detach(&link).unwrap();
        assert!(mounted_at(&real).unwrap().is_some());
        detach(&real).unwrap();

        let below = link.join("mount");
        node.publish(&source, &below, MountFlags::default());
        assert_eq!(mounted_at(&below).unwrap().unwrap().target, real.join("mount"));
        detach(&below).unwrap();
        assert!(lines_at(&real.join("mount")).is_empty());
    });
}

#[test]
fn the_error_for_a_busy_mount_names_the_process() {
    on_a_node(|node| {
        let source = node.source("a");
        let target = node.target("mount");
        node.publish(&source, &target, MountFlags::default());
        let inside = Container::run("private", &format!("cd '{}'", target.display()));
        // The container has its own copy of the mount: only the open file of this process keeps the mount busy.
        let file = File::create(target.join("open")).unwrap();
        let error = detach(&target).unwrap_err();
        assert_eq!(error.kind(), Kind::InUse);
        let text = error.chain();
        let process = format!("process {} (", std::process::id());
        assert!(text.contains(&process) && text.contains(target.to_str().unwrap()), "{text}");
        assert!(mounted_at(&target).unwrap().is_some(), "a busy mount stays");
        drop(file);
        inside.end();

        let inner = target.join("inner");
        fs::create_dir(&inner).unwrap();
        rustix::mount::mount("tmpfs", &inner, "tmpfs", MsFlags::empty(), None).unwrap();
        let error = detach(&target).unwrap_err();
        assert_eq!(error.kind(), Kind::InUse);
        assert!(error.chain().contains(inner.to_str().unwrap()), "{}", error.chain());
        assert_eq!(remove_target(&target).unwrap_err().kind(), Kind::InUse);
        detach(&inner).unwrap();
        detach(&target).unwrap();
    });
}

#[test]
fn a_target_path_of_the_maximum_length_works() {
    on_a_node(|node| {
        let source = node.source("a");
        let mut deep = node.target("deep");
        while deep.as_os_str().len() + 201 < 4095 {
            deep.push("d e".repeat(66) + "\\\n");
        }
        let name = "e".repeat(4095 - deep.as_os_str().len() - 1);
        fs::create_dir_all(&deep).unwrap();
        let target = deep.join(name);
        assert_eq!(target.as_os_str().len(), 4095);
        node.publish(&source, &target, MountFlags::default());
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
fn a_user_in_another_namespace_is_found_until_it_exits() {
    on_a_node(|node| {
        let (a, ab, empty) = (node.source("a"), node.source("ab"), node.source("empty"));
        fs::create_dir(node.base.join("pool/volumes/a/sub dir")).unwrap();
        let base = node.base.display();
        // A volume, a directory of it and a file of another: each is mounted where only the container sees it.
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
        assert_eq!(targets, [node.base.join("c/one"), node.base.join("c/two")]);
        assert!(
            found.iter().all(|user| user.pid == Some(container.pid()) && user.command == "sh"),
            "{found:?}"
        );
        let directories = [&a, &ab, &empty].map(|dir| MountedDir::of(dir.as_fd()).unwrap());
        let each = users.of_each(&directories).unwrap();
        assert_eq!(each.iter().map(Vec::len).collect::<Vec<_>>(), [2, 1, 0]);
        assert_eq!(users.scans(), 2);

        // The container does not keep a mount of this namespace busy.
        let target = node.target("mount");
        node.publish(&a, &target, MountFlags::default());
        let ours = users.of(a.as_fd()).unwrap();
        assert_eq!(ours.iter().filter(|user| user.pid.is_none()).count(), 1);
        detach(&target).unwrap();
        container.end();
        assert!(users.of(a.as_fd()).unwrap().is_empty());
        assert!(users.of(ab.as_fd()).unwrap().is_empty());
    });
}

#[test]
fn a_user_is_found_in_a_namespace_with_a_chrooted_process() {
    on_a_node(|node| {
        let a = node.source("a");
        let base = node.base.display();
        // The first process of the namespace cannot see the mount from its root. The second one can.
        let script = format!(
            "mkdir -p '{base}/c' '{base}/jail/bin'; mount --bind '{base}/pool/volumes/a' '{base}/c'
             sleep 1000 & mount --rbind /bin '{base}/jail/bin'
             for lib in /lib /lib64 /usr; do mkdir -p '{base}/jail'$lib; mount --rbind $lib '{base}/jail'$lib; done
             echo $! > '{base}/sleep'"
        );
        let jailed = format!("{script}\necho ready; exec chroot '{base}/jail' /bin/sh -c 'read end'");
        #[expect(clippy::disallowed_methods, reason = "the users of a volume are other processes")]
        let mut command = Command::new("unshare");
        command.args(["--mount", "--propagation", "private", "sh", "-ec", &jailed]);
        let mut shell = spawn(&mut command);
        shell.stdout.take().unwrap().read_exact(&mut [0; 6]).unwrap();
        let root = format!("/proc/{}/root", shell.id());
        while fs::read_link(&root).unwrap() == Path::new("/") {
            std::thread::yield_now();
        }
        let found = Users::new("/proc".into()).of(a.as_fd()).unwrap();
        let sleep: i32 = fs::read_to_string(node.base.join("sleep")).unwrap().trim().parse().unwrap();
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
fn concurrent_queries_share_scans() {
    on_a_node(|node| {
        let sources: Vec<File> = (0..32).map(|number| node.source(&format!("v{number}"))).collect();
        for number in 0..200 {
            node.publish(&sources[0], &node.target(&format!("m{number}")), MountFlags::default());
        }
        node.publish(&sources[7], &node.target("seven"), MountFlags::default());
        let base = node.base.display();
        let container = Container::run(
            "private",
            &format!("mkdir '{base}/c'; mount --bind '{base}/pool/volumes/v9' '{base}/c'"),
        );
        let users = Users::new("/proc".into());
        let (start, rounds) = (Barrier::new(sources.len()), 20);
        // A thread starts in the namespace of the thread that creates it.
        std::thread::scope(|scope| {
            for (number, source) in sources.iter().enumerate() {
                let (users, start) = (&users, &start);
                scope.spawn(move || {
                    start.wait();
                    for _ in 0..rounds {
                        let found = users.of(source.as_fd()).unwrap();
                        let expected = match number {
                            0 => 400, // 200 here and their copies in the container
                            7 => 2,
                            9 => 1,
                            _ => 0,
                        };
                        assert_eq!(found.len(), expected, "volume {number}");
                    }
                });
            }
        });
        let queries = sources.len() as u64 * rounds;
        assert!(users.scans() < queries / 4, "{} scans for {queries} queries", users.scans());
        container.end();
    });
}

#[test]
fn a_scan_is_never_older_than_its_query() {
    on_a_node(|node| {
        let sources: Vec<File> = (0..4).map(|number| node.source(&format!("v{number}"))).collect();
        let users = Users::new("/proc".into());
        std::thread::scope(|scope| {
            for (number, source) in sources.iter().enumerate() {
                let users = &users;
                scope.spawn(move || {
                    let target = node.target(&format!("m{number}"));
                    for turn in 0..100 {
                        undisturbed(|| {
                            node.publish(source, &target, MountFlags::default());
                            assert_eq!(users.of(source.as_fd()).unwrap().len(), 1, "turn {turn}");
                            detach(&target).unwrap();
                        });
                        assert_eq!(users.of(source.as_fd()).unwrap().len(), 0, "turn {turn}");
                    }
                });
            }
        });
    });
}

/// Prints how long a scan takes: `cargo test --release --test mounts -- --ignored --nocapture`.
#[test]
#[ignore = "a measurement"]
fn measure_the_duration_of_a_scan() {
    on_a_node(|node| {
        let users = Users::new("/proc".into());
        let source = node.source("a");
        let query = || assert!(users.of(source.as_fd()).unwrap().is_empty());
        let processes: Vec<Container> = (0..60).map(|_| Container::run_here("true")).collect();
        let mut mounts = 0;
        for wanted in [50, 500, 2000] {
            for number in mounts..wanted {
                let volume = node.source(&format!("v{number}"));
                node.publish(&volume, &node.target(&format!("m{number}")), MountFlags::default());
            }
            mounts = wanted;
            for namespaces in [0, 10] {
                let others: Vec<_> = (0..namespaces).map(|_| Container::run("private", "true")).collect();
                let mut times: Vec<Duration> = (0..100)
                    .map(|_| {
                        let start = Instant::now();
                        query();
                        start.elapsed()
                    })
                    .collect();
                times.sort_unstable();
                let is_process =
                    |entry: &fs::DirEntry| entry.file_name().to_string_lossy().parse::<u32>().is_ok();
                let count = fs::read_dir("/proc").unwrap().flatten().filter(is_process).count();
                let (before, start) = (users.scans(), Instant::now());
                std::thread::scope(|scope| {
                    (0..32).for_each(|_| drop(scope.spawn(|| (0..10).for_each(|_| query()))))
                });
                println!(
                    "{mounts} mounts, copied to {namespaces} other namespaces, {count} processes: median {:?}, \
                     p98 {:?}; 32 callers, 320 queries: {:?}, {} scans",
                    times[50],
                    times[97],
                    start.elapsed(),
                    users.scans() - before
                );
                drop(others);
            }
        }
        drop(processes);
    });
}
