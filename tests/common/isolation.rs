//! Tests that need root, a mount namespace or a process of their own.

use std::ffi::CStr;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::Path;
use std::process::Command;

use rustix::mount::{MountFlags, MountPropagationFlags, UnmountFlags};

/// Reports whether the test runs as root. If not, prints that the test is skipped; with `CI` set it panics instead.
pub(crate) fn is_root() -> bool {
    if rustix::process::geteuid().is_root() {
        return true;
    }
    skip("mounts, devices and other owners need root");
    false
}

/// Prints why a test is skipped; panics with `CI` set, where no test may be skipped.
#[expect(clippy::print_stderr, reason = "a skipped test says so")]
pub(crate) fn skip(reason: &str) {
    assert!(std::env::var_os("CI").is_none(), "{reason}, and with CI set no test is skipped");
    eprintln!("skipped: {reason}");
}

/// Runs the body of a test in a process and a mount namespace of its own. `test` is the full name of the test.
///
/// A test needs this if it changes or measures something process-wide (limits, memory), or if the users of its mounts
/// must be found through `/proc`, which shows processes and not threads.
pub(crate) fn in_own_process(test: &str, body: impl FnOnce()) {
    in_process_of(test, &["unshare", "--mount", "--propagation", "private"], body);
}

/// Runs the body of a test in a process that gets no inotify instance: one in a user namespace whose limit is 0.
pub(crate) fn without_inotify(test: &str, body: impl FnOnce()) {
    let forbid = "echo 0 > /proc/sys/user/max_inotify_instances && exec \"$@\"";
    in_process_of(test, &["unshare", "--user", "--map-root-user", "sh", "-ec", forbid, "sh"], body);
}

/// The environment variable of such a process.
pub(super) const CHILD: &str = "ORLOP_TEST_CHILD";

/// Runs the body of a test in a process that this command starts.
#[expect(clippy::disallowed_methods, reason = "the process is this program again")]
#[expect(clippy::print_stderr, reason = "passes on the output of the process")]
fn in_process_of(test: &str, command: &[&str], body: impl FnOnce()) {
    if std::env::var_os(CHILD).is_some() {
        return body();
    }
    if !is_root() {
        return;
    }
    let (program, arguments) = command.split_first().unwrap();
    let mut command = Command::new(program);
    command.args(arguments).arg(std::env::current_exe().unwrap());
    command.args(["--exact", test, "--include-ignored", "--nocapture", "--test-threads=1"]).env(CHILD, "1");
    let output = command.output().unwrap();
    let stdout = String::from_utf8_lossy(&output.stdout);
    eprint!("{}", String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{test} in its own process: {}\n{stdout}", output.status);
    // A wrong name would select no test and succeed.
    assert!(stdout.contains("1 passed"), "no test is named {test}:\n{stdout}");
}

/// Moves the calling thread to a new mount namespace, which ends with the thread.
#[expect(deprecated, reason = "unshare is unsafe only for descriptors, which are not unshared here")]
pub(crate) fn enter_new_mount_namespace() {
    rustix::thread::unshare(rustix::thread::UnshareFlags::NEWNS).unwrap();
    let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    rustix::mount::mount_change("/", private).unwrap();
}

/// Runs `body` in a thread with a mount namespace of its own.
pub(crate) fn in_own_mount_namespace(body: impl FnOnce() + Send) {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            enter_new_mount_namespace();
            body();
        });
        thread.join().unwrap_or_else(|panic| resume_unwind(panic));
    });
}

/// Runs `body` as [`in_own_mount_namespace`] does, with the path of a new tmpfs that has these mount options.
pub(crate) fn on_own_tmpfs(options: &CStr, body: impl FnOnce(&Path) + Send) {
    in_own_mount_namespace(|| {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().canonicalize().unwrap();
        rustix::mount::mount("tmpfs", &path, "tmpfs", MountFlags::empty(), options).unwrap();
        let result = catch_unwind(AssertUnwindSafe(|| body(&path)));
        // The temporary directory cannot be removed while it is a mount point.
        unmount_all(&path);
        result.unwrap_or_else(|panic| resume_unwind(panic));
    });
}

/// Lazily unmounts everything that is stacked at a path.
pub(crate) fn unmount_all(path: &Path) {
    while rustix::mount::unmount(path, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW).is_ok() {}
}
