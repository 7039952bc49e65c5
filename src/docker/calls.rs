//! The calls of the protocol: each one finds its volume, calls the engine, and answers.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use serde_json::{Value, json};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout_at};

use super::message::{Opts, Request, answer, listing};
use super::{Plugin, create, create_directory, share};
use crate::dispatch::Lane;
use crate::engine::call::{Describe, Get, GetSnapshot, ListNames, PublishVolume, RemovePublished};
use crate::engine::request::{CreateVolume, Described, Publish, Sharing};
use crate::error::{Error, Kind, Result};
use crate::mount::MountFlags;
use crate::telemetry;
use crate::volume::{Name, PoolName, Source, Volume, VolumeId, shorten};

/// How long Get, List and Path wait for a disk. Then they answer what is known: engines call them before everything else.
pub(super) const QUERY_WAIT: Duration = Duration::from_millis(80);
/// How long Create waits for a copy. Docker gives up after 120 s, and an administrator should read the reason.
pub(super) const COPY_WAIT: Duration = Duration::from_secs(100);
/// The pause between two requests for the same copy.
const COPY_RETRY: Duration = Duration::from_millis(250);

impl Plugin {
    pub(super) async fn call(self: &Arc<Self>, request: Request) -> Result<String> {
        match self.share_of(&request) {
            Some(share) => self.call_share(share, request).await,
            None => self.call_volume(request).await,
        }
    }

    async fn call_volume(self: &Arc<Self>, request: Request) -> Result<String> {
        match request {
            Request::Activate => Ok(answer(json!({ "Implements": ["VolumeDriver"] }))),
            Request::Capabilities => Ok(answer(json!({ "Capabilities": { "Scope": self.settings.scope } }))),
            Request::List => self.list().await,
            Request::Create { name, opts } => self.create(named(name), opts).await,
            Request::Get { name } => self.get(named(name)).await,
            Request::Path { name } => self.path(named(name)).await,
            Request::Mount { name, user } => self.mount(named(name), &user).await,
            Request::Unmount { name, user } => self.unmount(named(name), &user).await,
            Request::Remove { name } => self.remove(named(name)).await,
        }
    }

    async fn create(&self, name: String, opts: Opts) -> Result<String> {
        if share::is_share(&opts) {
            return self.create_share(name, opts).await;
        }
        let requested = create::parse(&name, &opts)?;
        let expected = requested.expected();
        let mut assigned = requested.assigned;
        let pool = self.pool(assigned.options.pool.take())?;
        let from = assigned.from.take();
        let _claim = self.claim_name(&VolumeId { pool: pool.clone(), name: Name::of(&name) })?;
        let volume = match from {
            // No volume has such a name.
            Some(archive) if archive.starts_with('/') => {
                let request = assigned.into_request(name, pool.clone(), None);
                self.create_from_archive(&pool, request, archive.into()).await?
            }
            Some(from) => {
                let source = self.source(&from).await?;
                self.create_copy(pool.clone(), assigned.into_request(name, pool, Some(source))).await?
            }
            None => self.dispatch.create(pool.clone(), assigned.into_request(name, pool, None)).await?,
        };
        self.catalog.add(&volume.id);
        expected.check(&volume)?;
        Ok(answer(json!({})))
    }

    async fn create_copy(&self, pool: PoolName, request: CreateVolume) -> Result<Volume> {
        let deadline = Instant::now() + COPY_WAIT;
        loop {
            match self.dispatch.create(pool.clone(), request.clone()).await {
                Err(error) if error.kind() == Kind::Busy && Instant::now() < deadline => {
                    tokio::time::sleep(COPY_RETRY).await;
                }
                created => return created,
            }
        }
    }

    /// The volume, or else the snapshot, that a user names as `<pool>/<name>` or as `<name>`.
    async fn source(&self, text: &str) -> Result<Source> {
        let ids: Vec<VolumeId> = match text.parse() {
            Ok(id) => vec![id],
            Err(_) => self.ids_of(text)?,
        };
        for id in &ids {
            match self.find_in(id).await {
                Ok(volume) => return Ok(Source::Volume(volume.id)),
                Err(error) if error.kind() == Kind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        for id in ids {
            match self.dispatch.call(&Lane::of(&id), GetSnapshot { id }).await {
                Ok(snapshot) => return Ok(Source::Snapshot(snapshot.id)),
                Err(error) if error.kind() == Kind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        let text = format!("option from: no volume and no snapshot {:?} exists", shorten(text));
        Err(Error::new(Kind::NotFound, text))
    }

    /// Any error means to an engine that the volume does not exist. So a volume that is known is described as far as its
    /// pool responds.
    async fn get(&self, name: String) -> Result<String> {
        let mut id = self.locate_soon(&name).await?;
        let mut described = self.describe_soon(&id).await;
        if described.as_ref().is_err_and(|error| error.kind() == Kind::NotFound) {
            // Another process has deleted it. There may be a new one in another pool.
            self.catalog.remove(&id);
            id = self.locate_soon(&name).await?;
            described = self.describe_soon(&id).await;
        }
        let volume = match described {
            Ok(described) => describe(&name, &described),
            Err(error) if error.kind() == Kind::NotFound => return Err(error),
            Err(error) => json!({ "Name": name, "Status": { "pool": id.pool, "state": error.chain() } }),
        };
        Ok(answer(json!({ "Volume": volume })))
    }

    async fn path(&self, name: String) -> Result<String> {
        let id = self.locate_soon(&name).await?;
        let described = self.describe_soon(&id).await?;
        Ok(answer(json!({ "Mountpoint": described.targets.first() })))
    }

    /// Lists the names only: an engine shows nothing else.
    async fn list(self: &Arc<Self>) -> Result<String> {
        // The pools that have not answered yet keep the names that they had, until they answer.
        let plugin = Arc::clone(self);
        let listed = tokio::spawn(async move { plugin.list_all().await });
        let _ = timeout_at(Instant::now() + QUERY_WAIT, listed).await;
        listing(&self.names())
    }

    /// Lists the volumes of all pools, side by side.
    ///
    /// # Errors
    /// The error of a pool. The names of the others are updated nevertheless.
    pub(super) async fn list_all(&self) -> Result<()> {
        let mut listings = JoinSet::new();
        for pool in self.settings.pools.iter().cloned() {
            let dispatch = self.dispatch.clone();
            listings.spawn(async move {
                let names = dispatch.call(&Lane::Pool(pool.clone()), ListNames { pool: pool.clone() }).await;
                (pool, names)
            });
        }
        let mut failed = None;
        while let Some(listed) = listings.join_next().await {
            match listed {
                Ok((pool, Ok(names))) => self.catalog.replace(&pool, names),
                Ok((_, Err(error))) => failed = Some(error),
                Err(error) => failed = Some(Error::caused(Kind::Internal, "list the volumes", error)),
            }
        }
        failed.map_or(Ok(()), Err)
    }

    async fn mount(&self, name: String, user: &str) -> Result<String> {
        let id = self.locate(&name).await?;
        let target = self.target(&id.name, user);
        if let Some(parent) = target.parent() {
            create_directory(parent, 0o711)?;
        }
        let request = Publish {
            id: id.clone(),
            target: target.clone(),
            flags: MountFlags::default(),
            sharing: Sharing::ManyTargets,
            ephemeral: None,
        };
        self.dispatch.call(&Lane::of(&id), PublishVolume { request }).await?;
        Ok(answer(json!({ "Mountpoint": target })))
    }

    /// Succeeds for a user that has nothing mounted: engines repeat calls.
    async fn unmount(&self, name: String, user: &str) -> Result<String> {
        let Ok(name) = name.parse::<Name>() else { return Ok(answer(json!({}))) };
        let target = self.target(&name, user);
        let id = match self.catalog.find(&name) {
            Some(id) => id,
            // Unmounting needs no volume: it may have been deleted by another process.
            None => VolumeId { pool: self.pool(None).or_else(|_| self.dispatch.default_pool_name())?, name },
        };
        self.dispatch.unpublish(id.to_string(), target).await?;
        Ok(answer(json!({})))
    }

    async fn remove(&self, name: String) -> Result<String> {
        let id = self.locate(&name).await?;
        let targets = self.targets_of(&id.name);
        let removed = RemovePublished { id: id.clone(), targets: targets.clone() };
        let removed = self.dispatch.call(&Lane::of(&id), removed).await;
        if removed.as_ref().err().is_none_or(|error| error.kind() == Kind::NotFound) {
            self.catalog.remove(&id);
        }
        removed?;
        // It is missing if the volume was never mounted. A directory that is not empty is left as it is.
        let _ = std::fs::remove_dir(targets);
        Ok(answer(json!({})))
    }

    /// Finds the pool of a volume: where it was last seen, or by asking each pool.
    ///
    /// # Errors
    /// `NotFound`.
    pub(super) async fn locate(&self, name: &str) -> Result<VolumeId> {
        for id in self.ids_of(name)? {
            if let Some(known) = self.catalog.find(&id.name) {
                return Ok(known);
            }
            if self.is_in(&id).await {
                return Ok(id);
            }
        }
        Err(not_found(name))
    }

    /// Like [`Plugin::locate`], but all pools are asked at once, and one that does not respond soon has no volume that is
    /// not known.
    async fn locate_soon(&self, name: &str) -> Result<VolumeId> {
        let ids = self.ids_of(name)?;
        if let Some(known) = ids.first().and_then(|id| self.catalog.find(&id.name)) {
            return Ok(known);
        }
        let deadline = Instant::now() + QUERY_WAIT;
        let found = join_all(ids.iter().map(|id| timeout_at(deadline, self.is_in(id)))).await;
        let first = ids.into_iter().zip(found).find(|(_, found)| matches!(found, Ok(true)));
        first.map(|(id, _)| id).ok_or_else(|| not_found(name))
    }

    /// Whether a pool has a volume. One that does not respond had none when it was last listed.
    async fn is_in(&self, id: &VolumeId) -> bool {
        match self.find_in(id).await {
            Ok(_) => true,
            Err(error) if error.kind() == Kind::Unreadable => {
                self.catalog.add(id);
                true
            }
            Err(_) => false,
        }
    }

    /// The ids that a volume of this name may have.
    fn ids_of(&self, name: &str) -> Result<Vec<VolumeId>> {
        let name = name.parse::<Name>().map_err(|_| not_found(name))?;
        let pools = self.settings.pools.iter().cloned();
        Ok(pools.map(|pool| VolumeId { pool, name: name.clone() }).collect())
    }

    /// The pool of this name, or the default one: of the pools that this driver serves.
    fn pool(&self, name: Option<PoolName>) -> Result<PoolName> {
        let pools = &self.settings.pools;
        let Some(name) = name else {
            let named = pools.iter().find(|pool| pool.as_str() == "default");
            return match named.or(pools.first()) {
                Some(pool) => Ok(pool.clone()),
                None => Err(Error::new(
                    Kind::Unsupported,
                    "this driver serves no pool, only NFS shares: use that of --docker-global",
                )),
            };
        };
        let name = self.dispatch.resolve_pool(Some(name))?;
        if pools.contains(&name) {
            return Ok(name);
        }
        let text = format!(
            "pool {name} is not served by this driver: use that of --docker for the pools of this host, and \
                            that of --docker-global for pools of several hosts"
        );
        Err(Error::new(Kind::Invalid, text))
    }

    /// All names in their order.
    fn names(&self) -> Vec<Name> {
        let mut names = self.catalog.names();
        let shares = self.share_names();
        if !shares.is_empty() {
            names.extend(shares);
            names.sort_unstable();
            names.dedup();
        }
        names
    }

    async fn find_in(&self, id: &VolumeId) -> Result<Volume> {
        let volume = self.dispatch.call(&Lane::of(id), Get { id: id.clone() }).await?;
        if volume.ephemeral {
            return Err(not_found(id.name.as_str()));
        }
        self.catalog.add(id);
        Ok(volume)
    }

    async fn describe(&self, id: &VolumeId) -> Result<Described> {
        let call = Describe { id: id.clone(), targets: self.targets_of(&id.name) };
        self.dispatch.call(&Lane::of(id), call).await
    }

    async fn describe_soon(&self, id: &VolumeId) -> Result<Described> {
        let described = timeout_at(Instant::now() + QUERY_WAIT, self.describe(id)).await;
        described.unwrap_or_else(|_| {
            let text = format!("pool {} has not responded within {} ms", id.pool, QUERY_WAIT.as_millis());
            Err(Error::new(Kind::Unresponsive, text))
        })
    }

    /// Where a volume is mounted for one user. A user is any text, so its name is made safe.
    pub(super) fn target(&self, volume: &Name, user: &str) -> PathBuf {
        self.targets_of(volume).join(Name::of(user).as_str())
    }

    pub(super) fn targets_of(&self, volume: &Name) -> PathBuf {
        self.settings.targets.join(volume.as_str())
    }
}

/// Adds the name of the volume to the log.
fn named(name: String) -> String {
    telemetry::record_volume_id(&name);
    name
}

fn not_found(name: &str) -> Error {
    Error::new(Kind::NotFound, format!("volume {:?} does not exist", shorten(name)))
}

/// The volume as Get shows it.
fn describe(name: &str, described: &Described) -> Value {
    let Described { volume, used, users, targets, snapshots, health } = described;
    let size = (volume.size != 0).then_some(volume.size);
    json!({
        "Name": name,
        "Mountpoint": targets.first(),
        "CreatedAt": volume.created,
        "Status": {
            "pool": volume.id.pool,
            "state": "ok",
            "size": size,
            "used": used,
            "enforced": volume.enforced,
            "users": users,
            "health": health,
            "snapshots": snapshots,
            "lastBackup": volume.last_backup,
            "labels": volume.labels,
        },
    })
}
