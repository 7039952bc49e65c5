//! The calls for shares of NFS servers, which are recorded on this host, mounted, and not managed.

use serde_json::{Value, json};
use tokio::time::{Instant, timeout_at};

use super::calls::QUERY_WAIT;
use super::message::{Opts, Request, answer};
use super::{Plugin, create, create_directory, share};
use crate::dispatch::Lane;
use crate::engine::named_shares::{MountedShare, ShareRecord};
use crate::engine::request::Sharing;
use crate::engine::share::PublishShare;
use crate::engine::{Engine, NameClaim};
use crate::error::{Error, Kind, Result};
use crate::telemetry;
use crate::volume::{Name, VolumeId};

impl Plugin {
    /// The share that a call is for; `None` if it is for no volume, or for one of a pool.
    pub(super) fn share_of(&self, request: &Request) -> Option<Name> {
        match request {
            Request::Activate | Request::Capabilities | Request::List => None,
            Request::Create { name, .. }
            | Request::Get { name }
            | Request::Mount { name, .. }
            | Request::Path { name }
            | Request::Remove { name }
            | Request::Unmount { name, .. } => self.share_named(name),
        }
    }

    /// Runs a call for a share.
    pub(super) async fn call_share(&self, share: Name, request: Request) -> Result<String> {
        telemetry::record_volume_id(share.as_str());
        match request {
            Request::Get { .. } => self.get_share(&share).await,
            Request::Path { .. } => self.path_of_share(&share).await,
            Request::Mount { user, .. } => self.mount_share(&share, &user).await,
            Request::Unmount { user, .. } => self.unmount_share(&share, &user).await,
            Request::Remove { .. } => self.remove_share(share).await,
            Request::Create { name, opts } if share::is_share(&opts) => self.create_share(name, opts).await,
            Request::Create { .. } | Request::Activate | Request::Capabilities | Request::List => {
                Err(share_exists(&share))
            }
        }
    }

    /// Claims the name of a volume that is being created.
    ///
    /// # Errors
    /// `Conflict` or `Busy` when a share, or a volume of another pool, has the name or is about to get it.
    pub(super) fn claim_name(&self, id: &VolumeId) -> Result<NameClaim> {
        let claim = self.dispatch.engine().claim_volume_name(id)?;
        match self.share_named(id.name.as_str()) {
            Some(share) => Err(share_exists(&share)),
            None => Ok(claim),
        }
    }

    fn share_named(&self, name: &str) -> Option<Name> {
        let name = name.parse().ok()?;
        // A damaged record is one of a share, too.
        let is_known = self.shares.as_ref()?.get(&name).map_or(true, |record| record.is_some());
        is_known.then_some(name)
    }

    /// The names of the shares.
    pub(super) fn share_names(&self) -> Vec<Name> {
        self.shares.as_ref().map(|shares| shares.names()).unwrap_or_default()
    }

    /// Records a share. Nothing is made on its server, which is contacted when the share is mounted.
    pub(super) async fn create_share(&self, name: String, opts: Opts) -> Result<String> {
        create::check_name(&name)?;
        share::parse(&opts)?;
        let Some(shares) = self.shares.clone() else {
            let text = "option type: shares are recorded on this host, and volumes of this driver belong to all hosts: use the \
                        driver that `orlop serve --docker` names";
            return Err(Error::new(Kind::Unsupported, text));
        };
        let name: Name = name.parse()?;
        // Until the share is recorded, or a volume of this name exists.
        let claim = self.dispatch.engine().claim_share_name(&name)?;
        if self.share_named(name.as_str()).is_none() {
            self.check_no_volume(&name).await?;
        }
        let add = move |_: &Engine| {
            let _claim = claim;
            shares.add(&name, &opts)
        };
        self.dispatch.run(&Lane::NoPool, add).await?;
        Ok(answer(json!({})))
    }

    /// Refuses the name of a volume.
    async fn check_no_volume(&self, name: &Name) -> Result<()> {
        match self.locate(name.as_str()).await {
            Ok(id) => {
                let text = format!("volume {id} exists: use another name for the share");
                Err(Error::new(Kind::Conflict, text))
            }
            Err(error) if error.kind() == Kind::NotFound => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Describes a share without its server.
    async fn get_share(&self, name: &Name) -> Result<String> {
        // An engine takes an error for a share that does not exist, and forgets its labels.
        let mounted = self.mounted_share_soon(name).await.unwrap_or_default();
        let volume = match self.record(name) {
            Ok(record) => describe(&record, &mounted),
            Err(error) => json!({ "Name": name, "Status": { "state": error.chain() } }),
        };
        Ok(answer(json!({ "Volume": volume })))
    }

    async fn path_of_share(&self, name: &Name) -> Result<String> {
        Ok(answer(json!({ "Mountpoint": self.mounted_share_soon(name).await?.targets.first() })))
    }

    async fn mount_share(&self, name: &Name, user: &str) -> Result<String> {
        let share = share::parse(&self.record(name)?.options)?;
        let target = self.target(name, user);
        create_directory(&self.targets_of(name), 0o711)?;
        let request = PublishShare {
            id: name.to_string(),
            flags: share.flags(),
            share,
            directory: "".into(),
            target: target.clone(),
            sharing: Sharing::ManyTargets,
        };
        self.dispatch.publish_share(request).await?;
        Ok(answer(json!({ "Mountpoint": target })))
    }

    async fn unmount_share(&self, name: &Name, user: &str) -> Result<String> {
        self.dispatch.unpublish(name.to_string(), self.target(name, user)).await?;
        Ok(answer(json!({})))
    }

    /// Forgets a share that no container uses. Its server keeps everything.
    async fn remove_share(&self, name: Name) -> Result<String> {
        let (Some(shares), targets) = (self.shares.clone(), self.targets_of(&name)) else {
            return Ok(answer(json!({})));
        };
        let remove = move |engine: &Engine| {
            engine.withdraw_share(&name, &targets)?;
            shares.remove(&name)?;
            // It is missing if the share was never mounted.
            let _ = std::fs::remove_dir(targets);
            Ok(())
        };
        self.dispatch.run(&Lane::NoPool, remove).await?;
        Ok(answer(json!({})))
    }

    async fn mounted_share_soon(&self, name: &Name) -> Result<MountedShare> {
        let targets = self.targets_of(name);
        let described = self.dispatch.run(&Lane::NoPool, move |engine| engine.describe_share(&targets));
        timeout_at(Instant::now() + QUERY_WAIT, described).await.unwrap_or_else(|_| {
            let text =
                format!("the mounts of share {name} are not known within {} ms", QUERY_WAIT.as_millis());
            Err(Error::new(Kind::Unresponsive, text))
        })
    }

    fn record(&self, name: &Name) -> Result<ShareRecord> {
        let found = self.shares.as_ref().map(|shares| shares.get(name)).transpose()?.flatten();
        found.ok_or_else(|| Error::new(Kind::NotFound, format!("share {name} does not exist")))
    }
}

fn share_exists(share: &Name) -> Error {
    Error::new(Kind::Conflict, format!("a share {share} exists: use another name for the volume"))
}

/// The share as Get shows it.
fn describe(record: &ShareRecord, mounted: &MountedShare) -> Value {
    let share = share::parse(&record.options);
    let state = share.as_ref().map_or_else(Error::chain, |_| "ok".to_owned());
    json!({
        "Name": record.name,
        "Mountpoint": mounted.targets.first(),
        "CreatedAt": record.created,
        "Status": {
            "type": "nfs",
            "share": share.ok().map(|share| share.to_string()),
            "options": record.options.get("o"),
            "state": state,
            "users": mounted.users,
        },
    })
}
