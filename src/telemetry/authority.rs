//! Tells administrators about clients whose requests h2 resets before this program sees them.
//!
//! gRPC for Python, Java and C sends the path of a Unix socket as the `:authority` of a request, which is not a valid
//! host name. h2 only mentions that in a debug event, so this layer waits for this event.

use std::fmt::{Debug, Write as _};
use std::time::Duration;

use tokio::sync::Notify;
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Metadata, Subscriber, warn};
use tracing_subscriber::Layer;
use tracing_subscriber::filter::filter_fn;
use tracing_subscriber::layer::Context;
use tracing_subscriber::registry::LookupSpan;

/// The module of h2 whose event says that a request was reset.
const TARGET: &str = "h2::server";
/// How long no further warning is logged after one.
const QUIET: Duration = Duration::from_secs(60);

/// Notified when a request was reset. An event cannot be logged while another one is handled.
static RESET: Notify = Notify::const_new();

struct Watch;

/// The layer that sees the events of h2, and no other ones.
pub(super) fn layer<S: Subscriber + for<'s> LookupSpan<'s>>() -> impl Layer<S> {
    let is_wanted = |of: &Metadata<'_>| of.is_event() && of.target() == TARGET && *of.level() == Level::DEBUG;
    Watch.with_filter(filter_fn(is_wanted).with_max_level_hint(Level::DEBUG))
}

impl<S: Subscriber> Layer<S> for Watch {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let mut message = Message(String::new());
        event.record(&mut message);
        if message.0.contains("malformed authority") {
            RESET.notify_one();
        }
    }
}

struct Message(String);

impl Visit for Message {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        if field.name() == "message" {
            let _ = write!(self.0, "{value:?}");
        }
    }
}

/// Logs a warning when requests are reset because of their `:authority`, at most once a minute.
pub async fn warn_of_reset_requests() -> std::convert::Infallible {
    loop {
        RESET.notified().await;
        warn!(
            "a gRPC client sent the path of the socket as :authority and got PROTOCOL_ERROR, as those for Python, Java \
             and C do: set its option grpc.default_authority to localhost"
        );
        tokio::time::sleep(QUIET).await;
    }
}
