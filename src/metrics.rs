//! Every metric of orlop; docs/metrics.md lists the same, and a test holds them together.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

use crate::engine::request::PoolStatus;
use crate::health::Health;

/// The content type of [`Metrics::text`].
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// From a call that touches memory only to a copy that ends just before its caller gives up.
const BUCKETS: [f64; 15] =
    [0.000_25, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 15.0, 60.0];

/// One figure of each pool: name, help, value.
type Figure = (&'static str, &'static str, fn(&PoolStatus) -> u64);

const POOL: [Figure; 9] = [
    ("orlop_pool_available", "Whether the pool is available: 1 or 0", |pool| {
        u64::from(pool.unavailable.is_none())
    }),
    ("orlop_pool_capacity_bytes", "Size of the pool's filesystem", |pool| pool.total),
    ("orlop_pool_provisioned_bytes", "Sum of the sizes of the pool's volumes", |pool| pool.provisioned),
    ("orlop_pool_allocatable_bytes", "Bytes that can still be provisioned", |pool| pool.allocatable),
    ("orlop_records_unreadable", "Volumes and snapshots whose record cannot be read", |pool| pool.unreadable),
    ("orlop_volumes", "Volumes in the pool", |pool| pool.volumes),
    ("orlop_snapshots", "Snapshots in the pool", |pool| pool.snapshots),
    ("orlop_trash_entries", "Deleted objects that are to be removed, now or when their retention has passed", |pool| pool.trash),
    ("orlop_reaper_stopped", "Whether trash cannot be removed: 1 or 0", |pool| {
        u64::from(pool.reaper_stopped.is_some())
    }),
];

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Operation {
    driver_name: String,
    method_name: &'static str,
    grpc_status_code: &'static str,
}

/// The registry of one process.
pub struct Metrics {
    registry: Registry,
    operations: Family<Operation, Histogram, fn() -> Histogram>,
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Metrics").finish_non_exhaustive()
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    /// A registry of calls only.
    #[must_use]
    pub fn new() -> Self {
        let operations = Family::new_with_constructor(histogram as fn() -> Histogram);
        let mut registry = Registry::default();
        let help = "Seconds from a call's arrival to its answer";
        registry.register("csi_plugin_operations_seconds", help, operations.clone());
        Self { registry, operations }
    }

    /// A registry of calls and of the pools as they were when last looked at.
    #[must_use]
    pub fn of(health: Arc<Health>) -> Self {
        let mut metrics = Self::new();
        metrics.registry.register_collector(Box::new(Figures(health)));
        metrics
    }

    /// Notes one finished call.
    pub fn observe(&self, driver: &str, method: &'static str, code: &'static str, took: Duration) {
        let of = Operation { driver_name: driver.to_owned(), method_name: method, grpc_status_code: code };
        self.operations.get_or_create(&of).observe(took.as_secs_f64());
    }

    /// All of it, as [`CONTENT_TYPE`] says.
    #[must_use]
    pub fn text(&self) -> String {
        let mut text = String::new();
        match prometheus_client::encoding::text::encode(&mut text, &self.registry) {
            Ok(()) => text,
            // A String takes everything: this does not happen, and half an answer would be worse than none.
            Err(fmt::Error) => String::new(),
        }
    }
}

fn histogram() -> Histogram {
    Histogram::new(BUCKETS)
}

/// What is known besides the calls.
#[derive(Debug)]
struct Figures(Arc<Health>);

impl Collector for Figures {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let pools = self.0.last();
        for (name, help, value) in POOL {
            let mut metric = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
            for pool in &*pools {
                let label = [("pool", pool.name.as_str())];
                metric.encode_family(&label)?.encode_gauge(&signed(value(pool)))?;
            }
        }
        let jobs = u64::try_from(self.0.jobs_running()).unwrap_or(u64::MAX);
        let single = [
            ("orlop_jobs_running", "Copies under way or waiting for their turn", jobs),
            ("process_resident_memory_bytes", "Memory of this process", resident()),
        ];
        for (name, help, value) in single {
            encoder.encode_descriptor(name, help, None, MetricType::Gauge)?.encode_gauge(&signed(value))?;
        }
        let help = "The version of this program";
        let mut build = encoder.encode_descriptor("orlop_build_info", help, None, MetricType::Gauge)?;
        build.encode_family(&[("version", env!("CARGO_PKG_VERSION"))])?.encode_gauge(&1_i64)
    }
}

fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

/// The second field of `/proc/self/statm`, in bytes; 0 where it cannot be read.
fn resident() -> u64 {
    let text = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages: u64 = text.split(' ').nth(1).and_then(|word| word.parse().ok()).unwrap_or(0);
    pages.saturating_mul(rustix::param::page_size() as u64)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::engine::Engine;
    use crate::engine::request::Tuning;

    #[test]
    fn the_page_lists_what_is_exposed() {
        let engine = Engine::open(Vec::new(), Tuning::default()).unwrap();
        let metrics = Metrics::of(Arc::new(Health::new(Arc::new(engine))));
        metrics.observe("d", "m", "OK", Duration::from_millis(1));
        let text = metrics.text();
        let exposed: BTreeSet<_> = text
            .lines()
            .filter_map(|line| line.strip_prefix("# TYPE "))
            .filter_map(|line| line.split(' ').next())
            .collect();
        assert_eq!(exposed, listed());
        assert!(resident() > 0);
    }

    fn listed() -> BTreeSet<&'static str> {
        include_str!("../docs/metrics.md")
            .lines()
            .filter_map(|line| line.strip_prefix("| `"))
            .filter_map(|line| line.split(['`', '{']).next())
            .collect()
    }

    #[test]
    fn the_charts_alerts_and_dashboard_ask_for_what_is_exposed() {
        let listed = listed();
        for file in [
            include_str!("../charts/orlop/templates/prometheusrule.yaml"),
            include_str!("../charts/orlop/files/dashboard.json"),
        ] {
            let asked: BTreeSet<_> = file
                .lines()
                .filter(|line| line.contains("expr") || line.contains("query") || line.contains("rate("))
                .flat_map(|line| line.split(|letter: char| !letter.is_ascii_alphanumeric() && letter != '_'))
                .filter(|word| word.starts_with("orlop_") || word.starts_with("csi_plugin_"))
                .map(|word| word.trim_end_matches("_count").trim_end_matches("_bucket"))
                .collect();
            assert!(asked.len() > 3, "{asked:?}");
            assert_eq!(asked.difference(&listed).collect::<Vec<_>>(), Vec::<&&str>::new());
        }
    }
}
