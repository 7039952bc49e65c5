//! SIGINT and SIGTERM for commands that copy: the copy is cancelled, and its remains are removed.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use tokio::signal::unix::{SignalKind, signal};

use crate::error::{Context as _, Result};

/// Returns a flag that is set by the first SIGINT or SIGTERM. A second signal ends the process.
pub(super) fn flag() -> Result<Arc<AtomicBool>> {
    let flag = Arc::new(AtomicBool::new(false));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.context(|| "start the runtime for signals")?;
    let (mut interrupt, mut terminate) = {
        let _in_runtime = runtime.enter();
        let wait = |kind| signal(kind).context(|| "wait for signals");
        (wait(SignalKind::interrupt())?, wait(SignalKind::terminate())?)
    };
    let set = Arc::clone(&flag);
    let wait = move || {
        runtime.block_on(async {
            for _ in 0..2 {
                tokio::select! {
                    _ = interrupt.recv() => {}
                    _ = terminate.recv() => {}
                }
                if set.swap(true, Ordering::Relaxed) {
                    std::process::exit(1);
                }
            }
        });
    };
    thread::Builder::new().name("signals".to_owned()).spawn(wait).context(|| "start a thread")?;
    Ok(flag)
}
