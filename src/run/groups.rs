//! Makes and deletes the group snapshots that the cluster asks for: `crate::kube` says what a content of one needs next, the
//! CSI frontend does it.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc::{self, Receiver, Sender};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tracing::{info, warn};

use crate::csi::{Driver, Identity};
use crate::error::{Error, Kind, Result};
use crate::kube::{GroupContent, GroupContents, Step};

/// Contents that wait for the dispatcher. The watch waits, too, while there are as many.
const WAITING: usize = 64;
/// Contents that this node works on at the same time.
const PARALLEL: usize = 4;
/// The wait after the first failure. It doubles with each further one.
const FIRST_RETRY: Duration = Duration::from_secs(1);
/// The longest wait after a failure, as csi-snapshotter has it.
const LAST_RETRY: Duration = Duration::from_secs(300);
/// The longest wait for a copy that runs, and for another object.
const LAST_BUSY: Duration = Duration::from_secs(5);
/// How often that is waited for. Then it is an error, which is reported and retried less often.
const BUSY_RETRIES: u32 = 12;
/// The longest wait for an API server that does not respond.
const LAST_RECONNECT: Duration = Duration::from_secs(60);
/// How often a cluster without group snapshots is asked whether it has them now.
const NOT_INSTALLED: Duration = Duration::from_secs(300);

/// The state of one content as the watch has reported it. Only the newest counts.
type Updates = watch::Receiver<GroupContent>;

/// Works on the contents of group snapshots, for as long as the process runs.
pub(super) async fn serve(driver: Driver, identity: Identity) {
    let contents = connect(&identity).await;
    let (sender, receiver) = mpsc::channel(WAITING);
    let permits = Semaphore::new(PARALLEL);
    let worker = Arc::new(Worker { contents, driver, permits });
    tokio::join!(follow(&worker.contents, &sender), dispatch(&worker, receiver));
}

async fn connect(identity: &Identity) -> GroupContents {
    let mut wait = Backoff::default();
    loop {
        match GroupContents::connect(identity.driver.clone(), identity.node.clone()).await {
            Ok(contents) => return contents,
            Err(error) => wait.after("cannot make group snapshots", &error).await,
        }
    }
}

/// Sends all contents, and then each change.
async fn follow(contents: &GroupContents, updates: &Sender<GroupContent>) {
    let mut wait = Backoff::default();
    loop {
        match contents.list().await {
            Ok(Some((all, version))) => {
                wait = Backoff::default();
                for content in all {
                    let _ = updates.send(content).await;
                }
                if let Err(error) = follow_from(contents, version, updates).await {
                    wait.after("the watch of the VolumeGroupSnapshotContents has ended", &error).await;
                }
            }
            Ok(None) => tokio::time::sleep(NOT_INSTALLED).await,
            Err(error) => wait.after("cannot follow the VolumeGroupSnapshotContents", &error).await,
        }
    }
}

/// Returns when the list is to be read again.
async fn follow_from(
    contents: &GroupContents,
    version: String,
    updates: &Sender<GroupContent>,
) -> Result<()> {
    let mut next = Some(version);
    while let Some(version) = next {
        next = contents.watch(&version, updates).await?;
        // In case something between here and the API server ends each watch at once.
        tokio::time::sleep(FIRST_RETRY).await;
    }
    Ok(())
}

/// Waits longer after each failure in a row.
#[derive(Debug, Default)]
struct Backoff(u32);

impl Backoff {
    async fn after(&mut self, what: &str, error: &Error) {
        let wait = delay(self.0, LAST_RECONNECT);
        self.0 = self.0.saturating_add(1);
        warn!(error = error.chain(), retry_in_seconds = wait.as_secs(), "{what}");
        tokio::time::sleep(wait).await;
    }
}

fn delay(failures: u32, longest: Duration) -> Duration {
    FIRST_RETRY.saturating_mul(2_u32.saturating_pow(failures)).min(longest)
}

/// Runs one task for each content that needs a step.
async fn dispatch(worker: &Arc<Worker>, mut updates: Receiver<GroupContent>) {
    let mut known: HashMap<String, watch::Sender<GroupContent>> = HashMap::new();
    let mut running: JoinSet<Updates> = JoinSet::new();
    loop {
        tokio::select! {
            Some(content) = updates.recv() => {
                if let Some(sender) = known.get(content.name()).filter(|sender| !sender.is_closed()) {
                    sender.send_replace(content);
                } else if worker.contents.step(&content) != Step::Nothing {
                    let name = content.name().to_owned();
                    let (sender, receiver) = watch::channel(content);
                    known.insert(name, sender);
                    running.spawn(Arc::clone(worker).reconcile(receiver));
                }
            }
            Some(ended) = running.join_next() => match ended {
                Ok(receiver) if receiver.has_changed().unwrap_or(false) => {
                    running.spawn(Arc::clone(worker).reconcile(receiver));
                }
                Ok(receiver) => {
                    known.remove(receiver.borrow().name());
                }
                Err(error) => {
                    known.retain(|_, sender| !sender.is_closed());
                    warn!(error = %error, "a task of a group snapshot has ended");
                }
            },
            else => return,
        }
    }
}

struct Worker {
    contents: GroupContents,
    driver: Driver,
    permits: Semaphore,
}

impl Worker {
    /// Takes the next step of a content, and retries it until it succeeds. Further steps follow from the updates of the content.
    async fn reconcile(self: Arc<Self>, mut updates: Updates) -> Updates {
        let mut content = updates.borrow_and_update().clone();
        let mut failures = 0;
        loop {
            // An update may be older than what an earlier step has done.
            let taken = match self.contents.get(&content).await {
                Ok(None) => return updates,
                Ok(Some(now)) => {
                    content = now;
                    self.take_step(&content).await
                }
                Err(error) => Err(error),
            };
            let Err(error) = taken else { return updates };
            let is_busy = error.kind() == Kind::Busy && failures < BUSY_RETRIES;
            let wait = delay(failures, if is_busy { LAST_BUSY } else { LAST_RETRY });
            failures = failures.saturating_add(1);
            if !is_busy {
                self.report(&content, &error).await;
            }
            // A deletion does not wait.
            let begins_deletion = |update: &GroupContent| update.is_further_in_deletion_than(&content);
            let _ = tokio::time::timeout(wait, updates.wait_for(begins_deletion)).await;
        }
    }

    async fn report(&self, content: &GroupContent, error: &Error) {
        let name = content.name();
        warn!(content = name, error = error.chain(), "a group snapshot is retried");
        // The content belongs to another node as long as this one has not claimed it.
        let is_own = match self.contents.step(content) {
            Step::Create { .. } | Step::Find { .. } | Step::Delete { .. } => true,
            Step::Nothing
            | Step::ClaimByVolume(_)
            | Step::ClaimByGroup { .. }
            | Step::LabelMembers
            | Step::Release => false,
        };
        if is_own && let Err(error) = self.contents.report_error(content, error).await {
            warn!(content = name, error = error.chain(), "cannot report the error of a group snapshot");
        }
    }

    async fn take_step(&self, content: &GroupContent) -> Result<()> {
        let _permit = self.permits.acquire().await;
        let name = content.name();
        match self.contents.step(content) {
            Step::Nothing => Ok(()),
            Step::ClaimByVolume(volume) => self.claim_by_volume(content, volume).await,
            Step::ClaimByGroup { id, snapshots } => match self.driver.find_group(id, snapshots).await? {
                Some(_) => self.contents.claim(content).await,
                None => Ok(()),
            },
            Step::Create { name: group, volumes } => {
                self.contents.require_here(volumes).await?;
                let parameters = self.contents.parameters(content).await?;
                let made = self.driver.make_group(group, volumes.to_vec(), parameters).await?;
                info!(content = name, group = %made.id, "made the group snapshot of the cluster");
                self.contents.report_ready(content, &made.id, made.created, &made.snapshots).await
            }
            Step::Find { id, snapshots } => match self.driver.find_group(id, snapshots).await? {
                Some(made) => {
                    self.contents.report_ready(content, &made.id, made.created, &made.snapshots).await
                }
                None => Err(Error::new(Kind::NotFound, format!("group snapshot {id} does not exist"))),
            },
            Step::LabelMembers => self.contents.label_members(content).await,
            Step::Delete { id, snapshots } => {
                self.driver.remove_group(id.clone(), snapshots).await?;
                info!(content = name, group = id, "deleted the group snapshot of the cluster");
                self.contents.release(content).await
            }
            Step::Release => self.contents.release(content).await,
        }
    }

    async fn claim_by_volume(&self, content: &GroupContent, volume: &str) -> Result<()> {
        if !self.driver.has_volume(volume).await? {
            return Ok(());
        }
        match self.contents.require_here(&[volume.to_owned()]).await {
            Ok(()) => self.contents.claim(content).await,
            // Another node has the volume of the content, which has the same id.
            Err(error) if error.kind() == Kind::Unsupported => Ok(()),
            Err(error) => Err(error),
        }
    }
}
