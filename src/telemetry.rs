//! The log, and the layer that logs and measures calls: each call has a span, one log line and one observation.

mod authority;

use std::future::Future;
use std::io::{self, Write};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use http::{Extensions, HeaderMap, Request, Response};
use tower::{Layer, Service};
use tracing::field::Empty;
use tracing::instrument::{Instrument, Instrumented};
use tracing::{Span, debug, error, info, warn};
use tracing_appender::non_blocking::{NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, Layer as _, fmt, registry};

use crate::error::{Error, Kind, Result};
use crate::metrics::Metrics;
use crate::volume::shorten;

pub use authority::warn_of_reset_requests;

/// Number of lines that wait to be written before further ones are dropped.
const BUFFERED_LINES: usize = 4096;

/// How long lines are collected after a write. At most these are lost when the process is killed.
const BATCH: Duration = Duration::from_millis(20);
/// Bytes that are written without waiting for more.
const BATCH_BYTES: usize = 64 << 10;

/// Writes lines in batches: the first one at once, and those of the next [`BATCH`] together, since waking the thread for
/// each line costs the calls more than the line itself.
#[derive(Debug)]
struct Batches<W> {
    output: W,
    lines: Vec<u8>,
}

impl<W: Write> Batches<W> {
    fn write_out(&mut self) -> io::Result<()> {
        let written = self.output.write_all(&self.lines);
        self.lines.clear();
        written
    }
}

impl<W: Write> Write for Batches<W> {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.lines.extend_from_slice(line);
        if self.lines.len() >= BATCH_BYTES {
            self.write_out()?;
        }
        Ok(line.len())
    }

    /// Called by the thread of the log when no line is left; those that arrive while it sleeps do not wake it.
    fn flush(&mut self) -> io::Result<()> {
        let written = self.write_out();
        sleep(BATCH);
        written
    }
}

#[expect(clippy::disallowed_methods, reason = "the thread of the log serves no call")]
fn sleep(duration: Duration) {
    std::thread::sleep(duration);
}

/// The running log. Dropping it writes what is buffered.
#[derive(Debug)]
#[must_use]
pub struct Log {
    _writer: WorkerGuard,
}

/// Starts the log on standard error, as text or as one JSON object per line. `filter` has the syntax of [`EnvFilter`]:
/// `info`, `orlop=debug,warn`.
///
/// A thread writes the lines. If standard error is full, closed or not read, lines are lost; no call fails or waits.
///
/// # Errors
/// `Invalid` for a filter that cannot be parsed, and when the log was started before.
pub fn init(json: bool, filter: &str) -> Result<Log> {
    let filter = EnvFilter::try_new(filter)
        .map_err(|error| Error::caused(Kind::Invalid, format!("log filter {:?}", shorten(filter)), error))?;
    let writer = NonBlockingBuilder::default().buffered_lines_limit(BUFFERED_LINES).thread_name("log");
    let (writer, guard) = writer.finish(Batches { output: std::io::stderr(), lines: Vec::new() });
    // Otherwise a failed write is reported on standard error, which fails again and panics.
    let lines = fmt::layer().with_writer(writer).log_internal_errors(false);
    let lines = if json {
        lines.json().flatten_event(true).with_current_span(true).with_span_list(false).boxed()
    } else {
        lines.with_ansi(false).with_target(false).boxed()
    };
    let started = registry().with(lines.with_filter(filter)).with(authority::layer()).try_init();
    started.map_err(|error| Error::new(Kind::Invalid, format!("start the log: {error}")))?;
    Ok(Log { _writer: guard })
}

/// Adds the volume of the current call, by id or requested name, to the call's span.
pub fn record_volume_id(id: &str) {
    Span::current().record("volume", tracing::field::debug(shorten(id)));
}

/// The severity of a call's result, which decides its log level.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Severity {
    /// Success. Logged at info; queries at debug.
    Ok,
    /// A failure that the caller can handle.
    Info,
    /// A failure that an administrator should know of.
    Warn,
    /// A fault of orlop or of the machine.
    Error,
}

/// The result of a call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// The name of the status code, one of a closed set.
    pub code: &'static str,
    /// The error message; empty on success.
    pub message: String,
    /// The severity.
    pub severity: Severity,
}

/// Reads the outcome from a response's headers and extensions, in the frontend's protocol.
pub type Describe = fn(&HeaderMap, &Extensions) -> Outcome;

/// The layer that logs and measures the calls of one server.
#[derive(Debug, Clone)]
pub struct RpcLayer(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    driver: String,
    methods: &'static [&'static str],
    metrics: Arc<Metrics>,
    describe: Describe,
}

impl RpcLayer {
    /// Creates a layer. A method that is not in `methods` is logged and counted as "unknown".
    #[must_use]
    pub fn new(
        driver: String,
        methods: &'static [&'static str],
        metrics: Arc<Metrics>,
        describe: Describe,
    ) -> Self {
        Self(Arc::new(Shared { driver, methods, metrics, describe }))
    }
}

impl<S> Layer<S> for RpcLayer {
    type Service = RpcService<S>;

    fn layer(&self, inner: S) -> RpcService<S> {
        RpcService { inner, shared: Arc::clone(&self.0) }
    }
}

/// A service whose calls are logged and measured.
#[derive(Debug, Clone)]
pub struct RpcService<S> {
    inner: S,
    shared: Arc<Shared>,
}

type ResponseFuture<R, E> = Pin<Box<dyn Future<Output = Result<Response<R>, E>> + Send>>;

impl<S, B, R> Service<Request<B>> for RpcService<S>
where
    S: Service<Request<B>, Response = Response<R>, Future: Send + 'static>,
{
    type Response = Response<R>;
    type Error = S::Error;
    type Future = Instrumented<ResponseFuture<R, S::Error>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let mut call = Call::new(&self.shared, request.uri().path());
        let span = tracing::error_span!("rpc", method = call.method, volume = Empty);
        let response = span.in_scope(|| self.inner.call(request));
        let future = async move {
            let response = response.await?;
            call.finish((call.shared.describe)(response.headers(), response.extensions()));
            Ok(response)
        };
        let future: ResponseFuture<R, S::Error> = Box::pin(future);
        future.instrument(span)
    }
}

/// A call in progress.
#[derive(Debug)]
struct Call {
    shared: Arc<Shared>,
    method: &'static str,
    started: Instant,
    finished: bool,
}

impl Call {
    fn new(shared: &Arc<Shared>, path: &str) -> Self {
        let method = shared.methods.iter().copied().find(|known| *known == path).unwrap_or("unknown");
        Self { shared: Arc::clone(shared), method, started: Instant::now(), finished: false }
    }

    fn finish(&mut self, outcome: Outcome) {
        self.finished = true;
        let elapsed = self.started.elapsed();
        self.shared.metrics.observe(&self.shared.driver, self.method, outcome.code, elapsed);
        let (ms, code, error) = (elapsed.as_secs_f64() * 1e3, outcome.code, outcome.message.as_str());
        match outcome.severity {
            Severity::Ok if is_query(self.method) => debug!(code, ms, "call finished"),
            Severity::Ok => info!(code, ms, "call finished"),
            Severity::Info => info!(code, ms, error, "call finished"),
            Severity::Warn => warn!(code, ms, error, "call finished"),
            Severity::Error => error!(code, ms, error, "call finished"),
        }
    }
}

impl Drop for Call {
    /// If the caller disconnects or its deadline passes, tonic drops the handler before a response exists. The engine
    /// call continues.
    fn drop(&mut self) {
        if !self.finished {
            let message = "the caller disconnected or its deadline passed; the work continues".to_owned();
            self.finish(Outcome { code: "Canceled", message, severity: Severity::Info });
        }
    }
}

/// Reports whether a method only reads. Orchestrators repeat probes and listings every few seconds.
fn is_query(method: &str) -> bool {
    let name = method.rsplit(['/', '.']).next().unwrap_or(method);
    let verb = name.strip_prefix("Node").or_else(|| name.strip_prefix("Controller")).unwrap_or(name);
    ["Activate", "Capabilities", "Get", "List", "Path", "Probe", "Validate"]
        .iter()
        .any(|word| verb.starts_with(word))
}

#[cfg(test)]
mod tests {
    use tower::ServiceExt;

    use super::*;

    fn layer(metrics: &Arc<Metrics>) -> RpcLayer {
        let describe = |headers: &HeaderMap, _: &Extensions| {
            let code = if headers.is_empty() { "OK" } else { "Internal" };
            Outcome { code, message: String::new(), severity: Severity::Ok }
        };
        RpcLayer::new("d".to_owned(), &["/s/Known"], Arc::clone(metrics), describe)
    }

    async fn handler(request: Request<()>) -> Result<Response<()>, std::convert::Infallible> {
        if request.uri().path() == "/s/Hang" {
            std::future::pending::<()>().await;
        }
        Ok(Response::new(()))
    }

    #[tokio::test]
    async fn each_call_is_counted_once_under_a_known_method() {
        let metrics = Arc::new(Metrics::new());
        let service = layer(&metrics).layer(tower::service_fn(handler));
        for path in ["/s/Known", "/s/Made-up", "/s/Hang"] {
            let request = Request::builder().uri(path).body(()).unwrap();
            let call = service.clone().oneshot(request);
            let _ = tokio::time::timeout(std::time::Duration::from_millis(20), call).await;
        }
        let text = metrics.text();
        let count = |method: &str, code: &str| {
            format!(
                "csi_plugin_operations_seconds_count{{driver_name=\"d\",method_name=\"{method}\",grpc_status_code=\"{code}\"}} 1"
            )
        };
        for line in [count("/s/Known", "OK"), count("unknown", "OK"), count("unknown", "Canceled")] {
            assert!(text.contains(&line), "{line}\n{text}");
        }
    }

    #[test]
    fn queries_are_the_methods_that_only_read() {
        for query in
            ["/x/Probe", "/x/NodeGetVolumeStats", "/x/ListVolumes", "/x/ControllerGetVolume", "/V.List"]
        {
            assert!(is_query(query), "{query}");
        }
        for change in
            ["/x/CreateVolume", "/x/NodePublishVolume", "/x/ControllerExpandVolume", "/V.Mount", "unknown"]
        {
            assert!(!is_query(change), "{change}");
        }
    }
}
