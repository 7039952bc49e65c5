//! A pause whose owner or helper is killed or stopped: no container stays frozen.

use std::fs::{self, File};
use std::os::fd::AsFd as _;
use std::path::Path;
use std::time::Duration;

use orlop::error::Kind;
use orlop::pause::{Hierarchy, Pause, PauseRecord, thaw};
use rustix::process::{Pid, Signal, kill_process};

use super::pause::{LIMIT, Volume, pauser};
use crate::common::child::{self, ChildProcess};
use crate::common::container::{TestCgroup, WRITE, assert_growing, assert_still, hierarchies};
use crate::common::isolation::{is_root, on_own_tmpfs};
use crate::common::random::Random;
use crate::common::wait::{sleep_ms, within_seconds};

const OWNER: &str = "faults::pause_kills::owner";
const BASE: &str = "ORLOP_TEST_PAUSE";
const MILLISECONDS: &str = "ORLOP_TEST_LIMIT";

/// Not a test but the process that pauses.
#[test]
fn owner() {
    let Some(base) = std::env::var_os(BASE) else { return };
    let limit = std::env::var(MILLISECONDS).unwrap().parse().unwrap();
    let base = Path::new(&base);
    let dir = File::open(base.join("pool/a/data")).unwrap();
    let mut pause: Option<Pause> = None;
    child::serve(|line| match line {
        "resume" => format!("{:?}", pause.take().unwrap().resume().map_err(|error| error.kind())),
        step => {
            let mut record = |record: &PauseRecord| {
                fs::write(base.join("pause.new"), serde_json::to_vec(record).unwrap()).unwrap();
                fs::rename(base.join("pause.new"), base.join("pause.json")).unwrap();
                if step == "record and wait" {
                    within_seconds(600, "this process is killed", || false);
                }
                Ok(())
            };
            let result = pauser().pause(&[dir.as_fd()], Duration::from_millis(limit), &mut record);
            result.map_or_else(
                |error| error.chain(),
                |begun| {
                    pause = begun;
                    "paused".to_owned()
                },
            )
        }
    });
}

fn start_owner(volume: &Volume, limit: Duration) -> ChildProcess {
    let base = volume.base.to_str().unwrap().to_owned();
    ChildProcess::start(OWNER, &[(BASE, base), (MILLISECONDS, limit.as_millis().to_string())])
}

fn signal(pid: i32, signal: Signal) {
    kill_process(Pid::from_raw(pid).unwrap(), signal).unwrap();
}

fn pid_of(owner: &ChildProcess) -> i32 {
    i32::try_from(owner.id()).unwrap()
}

/// The children of the owner, which are helpers.
fn helpers_of(owner: i32) -> Vec<i32> {
    let processes = fs::read_dir("/proc").unwrap().flatten();
    let pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let is_child = |pid: &i32| {
        let status = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        let mut fields = status.rsplit(')').next().unwrap_or_default().split_whitespace();
        fields.nth(1) == Some(&owner.to_string())
    };
    pids.filter(is_child).collect()
}

/// Runs `test` with a volume and the cgroup of a container that writes to it.
fn with_container(test: impl Fn(&Volume, &TestCgroup) + Send + Sync) {
    if !is_root() {
        return;
    }
    let run = |hierarchy: Hierarchy| {
        on_own_tmpfs(c"mode=755", |base| {
            let volume = Volume::in_dir(base);
            let cgroup = TestCgroup::new(hierarchy);
            let container = volume.container(&cgroup, WRITE);
            test(&volume, &cgroup);
            drop(container);
        });
    };
    hierarchies().into_iter().for_each(run);
}

#[track_caller]
fn assert_thawed(volume: &Volume, cgroup: &TestCgroup) {
    within_seconds(180, "the cgroup is thawed", || !cgroup.is_frozen());
    assert_growing(&volume.data);
}

fn recorded(volume: &Volume) -> PauseRecord {
    serde_json::from_slice(&fs::read(volume.base.join("pause.json")).unwrap()).unwrap()
}

#[test]
fn the_end_of_the_owner_thaws() {
    with_container(|volume, cgroup| {
        let mut owner = start_owner(volume, LIMIT);
        owner.send("record and wait");
        within_seconds(180, "the record exists", || volume.base.join("pause.json").exists());
        owner.kill();
        assert_thawed(volume, cgroup);

        let mut owner = start_owner(volume, LIMIT);
        assert_eq!(owner.ask("pause"), "paused");
        assert!(cgroup.is_frozen());
        assert_still(&volume.data);
        owner.kill();
        assert_thawed(volume, cgroup);
        assert!(thaw(Path::new("/proc"), &recorded(volume)).unwrap().is_empty(), "nothing was left");
    });
}

#[test]
fn the_end_of_the_owner_at_any_moment_thaws() {
    with_container(|volume, cgroup| {
        let mut random = Random::new(7);
        for _ in 0..20 {
            let mut owner = start_owner(volume, LIMIT);
            owner.send("pause");
            sleep_ms(random.pick(60));
            owner.kill();
            // The helper may not have begun to freeze yet, but it does not begin after the end of its input.
            within_seconds(180, "the helper has ended", || no_helper_is_left(cgroup));
            assert_thawed(volume, cgroup);
        }
    });
}

/// Reports whether the lock of the helper on the cgroup is free.
fn no_helper_is_left(cgroup: &TestCgroup) -> bool {
    use rustix::fs::{FlockOperation, flock};
    let dir = File::open(cgroup.procs().parent().unwrap()).unwrap();
    flock(&dir, FlockOperation::NonBlockingLockExclusive).is_ok()
}

#[test]
fn the_end_of_the_helper_thaws_and_spoils_the_pause() {
    with_container(|volume, cgroup| {
        let mut owner = start_owner(volume, LIMIT);
        assert_eq!(owner.ask("pause"), "paused");
        let helpers = helpers_of(pid_of(&owner));
        assert_eq!(helpers.len(), 1);
        signal(helpers[0], Signal::KILL);
        assert_thawed(volume, cgroup);
        assert_eq!(owner.ask("resume"), format!("Err({:?})", Kind::Busy));
    });
}

#[test]
fn what_owner_and_helper_leave_is_thawed_by_the_record() {
    with_container(|volume, cgroup| {
        let mut owner = start_owner(volume, LIMIT);
        assert_eq!(owner.ask("pause"), "paused");
        let helpers = helpers_of(pid_of(&owner));
        signal(pid_of(&owner), Signal::STOP);
        signal(helpers[0], Signal::KILL);
        owner.kill();
        assert!(cgroup.is_frozen());
        assert_still(&volume.data);
        let record = recorded(volume);
        let mut other = record.clone();
        other.cgroups[0].inode += 1;
        assert!(thaw(Path::new("/proc"), &other).unwrap().is_empty(), "another cgroup is left alone");
        other.cgroups[0].path.push_str("-gone");
        assert!(thaw(Path::new("/proc"), &other).unwrap().is_empty());
        assert!(cgroup.is_frozen());
        assert_eq!(thaw(Path::new("/proc"), &record).unwrap(), [cgroup.path()]);
        assert_thawed(volume, cgroup);
        assert!(thaw(Path::new("/proc"), &record).unwrap().is_empty());
    });
}

#[test]
fn a_stopped_owner_is_thawed_at_the_limit() {
    with_container(|volume, cgroup| {
        let mut owner = start_owner(volume, Duration::from_secs(5));
        assert_eq!(owner.ask("pause"), "paused");
        signal(pid_of(&owner), Signal::STOP);
        assert_thawed(volume, cgroup);
        signal(pid_of(&owner), Signal::CONT);
        assert_eq!(owner.ask("resume"), format!("Err({:?})", Kind::Busy));
    });
}

#[test]
fn a_stopped_helper_is_replaced_at_the_limit() {
    with_container(|volume, cgroup| {
        let mut owner = start_owner(volume, Duration::from_secs(5));
        assert_eq!(owner.ask("pause"), "paused");
        signal(helpers_of(pid_of(&owner))[0], Signal::STOP);
        assert_thawed(volume, cgroup);
        assert_eq!(owner.ask("resume"), format!("Err({:?})", Kind::Busy));
        assert!(helpers_of(pid_of(&owner)).is_empty());
    });
}

#[test]
fn a_helper_leaves_the_cgroup_of_its_owner() {
    with_container(|volume, cgroup| {
        let mut owner = start_owner(volume, LIMIT);
        let own = TestCgroup::new(Hierarchy::Unified);
        fs::write(own.procs(), owner.id().to_string()).unwrap();
        assert_eq!(owner.ask("pause"), "paused");
        let helper = helpers_of(pid_of(&owner))[0];
        let text = fs::read_to_string(format!("/proc/{helper}/cgroup")).unwrap();
        assert!(!text.contains("orlop-test"), "{text}");
        assert!(owner.ask("resume").starts_with("Ok"));
        owner.kill();
        assert!(!cgroup.is_frozen());
    });
}
