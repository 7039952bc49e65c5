//! The log, and the one layer that writes it: a span for each call, one line when it ends, one observation.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;

use http::{Extensions, HeaderMap, Request, Response};
use tower::{Layer, Service};
use tracing::field::Empty;
use tracing::instrument::{Instrument, Instrumented};
use tracing::{Span, debug, error, info, warn};
use tracing_subscriber::EnvFilter;

use crate::error::{Error, Kind, Result};
use crate::metrics::Metrics;
use crate::volume::shorten;

/// Sends the log to standard error, as text or as one JSON object per line. `filter` is written as tracing's: `info`, `orlop=debug,warn`.
///
/// # Errors
/// `Invalid` for a filter that cannot be read, and when there is a log already.
pub fn init(json: bool, filter: &str) -> Result<()> {
    let filter = EnvFilter::try_new(filter)
        .map_err(|bad| Error::caused(Kind::Invalid, format!("log filter {:?}", shorten(filter)), bad))?;
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    let started = if json {
        log.json().flatten_event(true).with_current_span(true).with_span_list(false).try_init()
    } else {
        log.with_ansi(false).with_target(false).try_init()
    };
    started.map_err(|taken| Error::new(Kind::Invalid, format!("start the log: {taken}")))
}

/// Tells the log which volume the call under way is about.
pub fn about(id: &str) {
    Span::current().record("volume", tracing::field::debug(shorten(id)));
}

/// How loud to be about a finished call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Weight {
    /// As it should be.
    Fine,
    /// The caller's business.
    Notable,
    /// Somebody has to do something.
    Trouble,
    /// A fault of ours.
    Fault,
}

/// How a call ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// The code's name, one of a closed set.
    pub code: &'static str,
    /// The error's text; empty when there is none.
    pub message: String,
    /// How loud to be.
    pub weight: Weight,
}

/// Reads the outcome from an answer's headers and extensions: the door knows its protocol.
pub type Describe = fn(&HeaderMap, &Extensions) -> Outcome;

/// The layer of one server.
#[derive(Debug, Clone)]
pub struct Rpcs(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    driver: String,
    methods: &'static [&'static str],
    metrics: Arc<Metrics>,
    describe: Describe,
}

impl Rpcs {
    /// A layer that knows these methods by name; any other is "unknown".
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

impl<S> Layer<S> for Rpcs {
    type Service = Watched<S>;

    fn layer(&self, inner: S) -> Watched<S> {
        Watched { inner, shared: Arc::clone(&self.0) }
    }
}

/// A service whose calls are told.
#[derive(Debug, Clone)]
pub struct Watched<S> {
    inner: S,
    shared: Arc<Shared>,
}

type Answer<R, E> = Pin<Box<dyn Future<Output = Result<Response<R>, E>> + Send>>;

impl<S, B, R> Service<Request<B>> for Watched<S>
where
    S: Service<Request<B>, Response = Response<R>, Future: Send + 'static>,
{
    type Response = Response<R>;
    type Error = S::Error;
    type Future = Instrumented<Answer<R, S::Error>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let mut call = Call::new(&self.shared, request.uri().path());
        let span = tracing::error_span!("rpc", method = call.method, volume = Empty);
        let answer = span.in_scope(|| self.inner.call(request));
        let told = async move {
            let response = answer.await?;
            call.end((call.shared.describe)(response.headers(), response.extensions()));
            Ok(response)
        };
        let told: Answer<R, S::Error> = Box::pin(told);
        told.instrument(span)
    }
}

/// A call under way.
#[derive(Debug)]
struct Call {
    shared: Arc<Shared>,
    method: &'static str,
    started: Instant,
    ended: bool,
}

impl Call {
    fn new(shared: &Arc<Shared>, path: &str) -> Self {
        let method = shared.methods.iter().copied().find(|known| *known == path).unwrap_or("unknown");
        Self { shared: Arc::clone(shared), method, started: Instant::now(), ended: false }
    }

    fn end(&mut self, outcome: Outcome) {
        self.ended = true;
        let took = self.started.elapsed();
        self.shared.metrics.observe(&self.shared.driver, self.method, outcome.code, took);
        let (ms, code, error) = (took.as_secs_f64() * 1e3, outcome.code, outcome.message.as_str());
        match outcome.weight {
            Weight::Fine if asks(self.method) => debug!(code, ms, "answered"),
            Weight::Fine => info!(code, ms, "answered"),
            Weight::Notable => info!(code, ms, error, "answered"),
            Weight::Trouble => warn!(code, ms, error, "answered"),
            Weight::Fault => error!(code, ms, error, "answered"),
        }
    }
}

impl Drop for Call {
    /// The caller hung up or its time was over: tonic dropped the handler, the work goes on.
    fn drop(&mut self) {
        if !self.ended {
            let message = "the caller did not wait; work under way goes on".to_owned();
            self.end(Outcome { code: "Canceled", message, weight: Weight::Notable });
        }
    }
}

/// Whether a method only asks: probes and listings come every few seconds.
fn asks(method: &str) -> bool {
    let name = method.rsplit('/').next().unwrap_or(method);
    let verb = name.strip_prefix("Node").or_else(|| name.strip_prefix("Controller")).unwrap_or(name);
    ["Get", "List", "Probe", "Validate"].iter().any(|word| verb.starts_with(word))
}

#[cfg(test)]
mod tests {
    use tower::ServiceExt;

    use super::*;

    fn layer(metrics: &Arc<Metrics>) -> Rpcs {
        let describe = |headers: &HeaderMap, _: &Extensions| {
            let code = if headers.is_empty() { "OK" } else { "Internal" };
            Outcome { code, message: String::new(), weight: Weight::Fine }
        };
        Rpcs::new("d".to_owned(), &["/s/Known"], Arc::clone(metrics), describe)
    }

    async fn answer(request: Request<()>) -> Result<Response<()>, std::convert::Infallible> {
        if request.uri().path() == "/s/Hang" {
            std::future::pending::<()>().await;
        }
        Ok(Response::new(()))
    }

    #[tokio::test]
    async fn each_call_is_counted_once_under_a_known_name() {
        let metrics = Arc::new(Metrics::new());
        let service = layer(&metrics).layer(tower::service_fn(answer));
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
    fn questions_are_quiet() {
        for quiet in ["/x/Probe", "/x/NodeGetVolumeStats", "/x/ListVolumes", "/x/ControllerGetVolume"] {
            assert!(asks(quiet), "{quiet}");
        }
        for told in ["/x/CreateVolume", "/x/NodePublishVolume", "/x/ControllerExpandVolume", "unknown"] {
            assert!(!asks(told), "{told}");
        }
    }
}
