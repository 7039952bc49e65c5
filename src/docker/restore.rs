//! Create from an archive: the option `from` with a path.

use std::path::PathBuf;
use std::sync::Arc;
use std::thread;

use tokio::sync::oneshot;
use tokio::time::timeout;

use super::Plugin;
use super::calls::COPY_WAIT;
use crate::engine::request::CreateVolume;
use crate::error::{Context as _, Error, Kind, Result};
use crate::volume::{Name, PoolName, Volume, VolumeId};

impl Plugin {
    /// Creates a volume from an archive of this host.
    ///
    /// # Errors
    /// `Busy` when it takes long: the volume appears when it is complete. `Unsupported` for a pool of a worker; otherwise
    /// those of the engine.
    pub(super) async fn create_from_archive(
        &self,
        pool: &PoolName,
        request: CreateVolume,
        archive: PathBuf,
    ) -> Result<Volume> {
        let name = request.name.clone();
        let command = format!("`orlop restore {} {pool}/{name}`", archive.display());
        if !self.dispatch.serves(pool) {
            let text = format!("option from: pool {pool} is shared by several hosts: use {command}");
            return Err(Error::new(Kind::Unsupported, text));
        }
        self.dispatch.check_volume_name(&VolumeId { pool: pool.clone(), name: Name::of(&name) }).await?;
        let engine = Arc::clone(self.dispatch.engine());
        let (done, made) = oneshot::channel();
        // A thread of its own, since it may take longer than any call.
        let work = move || {
            let _ = done.send(engine.create_from_file(request, &archive).context(|| "option from"));
        };
        let spawned = thread::Builder::new().name("restore".to_owned()).spawn(work);
        spawned.context(|| "start the thread that restores the volume")?;
        match timeout(COPY_WAIT, made).await {
            Ok(Ok(made)) => made,
            Ok(Err(_)) => Err(Error::new(Kind::Internal, "the restore panicked; see the log")),
            Err(_) => {
                let text = format!("volume {name} is still being restored: it appears when it is complete");
                Err(Error::new(Kind::Busy, text))
            }
        }
    }
}
