//! The metrics of orlop. A test compares them with docs/metrics.md.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

use crate::engine::request::{PAUSE_BOUNDS, PauseStats, PoolStatus};
use crate::health::{Health, ServerStatus};

/// The content type of [`Metrics::text`].
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Upper bounds in seconds, from a call that only reads memory to a copy that ends just before its caller's timeout.
const BUCKETS: [f64; 15] =
    [0.000_25, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 15.0, 60.0];

/// A gauge with one value for each pool: name, help text, value.
type PoolGauge = (&'static str, &'static str, fn(&PoolStatus) -> u64);

const POOL_GAUGES: [PoolGauge; 14] = [
    ("orlop_pool_available", "Whether the pool is available: 1 or 0", |pool| {
        u64::from(pool.unavailable.is_none())
    }),
    (
        "orlop_pool_unavailable_since_seconds",
        "Unix time since which the pool has been unavailable, or 0",
        |pool| pool.since.map_or(0, |since| u64::try_from(since.as_second()).unwrap_or(0)),
    ),
    (
        "orlop_pool_refuses_volumes",
        "Whether nothing can be created in the available pool: its filesystem is read-only or has no inodes, or its project ids forbid renames",
        |pool| u64::from(pool.refuses.is_some()),
    ),
    ("orlop_pool_capacity_bytes", "Size of the pool's filesystem", |pool| pool.total),
    (
        "orlop_pool_provisioned_bytes",
        "Sum of the sizes of the pool's volumes, and of those that this process creates or expands",
        |pool| pool.provisioned,
    ),
    ("orlop_pool_allocatable_bytes", "Bytes that can still be provisioned", |pool| pool.allocatable),
    ("orlop_records_unreadable", "Volumes and snapshots whose record cannot be read", |pool| pool.unreadable),
    ("orlop_volumes", "Volumes in the pool", |pool| pool.volumes),
    ("orlop_snapshots", "Snapshots in the pool", |pool| pool.snapshots),
    ("orlop_trash_entries", "Deleted objects that are to be removed, now or after their retention", |pool| {
        pool.trash
    }),
    ("orlop_trash_removal_failing", "Whether the reaper cannot remove the trash: 1 or 0", |pool| {
        u64::from(pool.trash_failure.is_some())
    }),
    (
        "orlop_files_outside_project",
        "Files that the last audit found outside of the projects of their volumes, so that no size limits them",
        |pool| pool.audit.map_or(0, |audit| audit.strays),
    ),
    ("orlop_volumes_not_audited", "Volumes in which the last audit could not look at all files", |pool| {
        pool.audit.map_or(0, |audit| audit.incomplete)
    }),
    ("orlop_audited_seconds", "Unix time of the end of the last audit of this process, or 0", |pool| {
        pool.audit.map_or(0, |audit| u64::try_from(audit.ended.as_second()).unwrap_or(0))
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
    after_call: Box<dyn Fn() + Send + Sync>,
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
    /// Creates a registry of the calls only.
    #[must_use]
    pub fn new() -> Self {
        let operations = Family::new_with_constructor(histogram as fn() -> Histogram);
        let mut registry = Registry::default();
        let help = "Seconds from the arrival of a call to its response";
        registry.register("csi_plugin_operations_seconds", help, operations.clone());
        Self { registry, operations, after_call: Box::new(|| ()) }
    }

    /// Creates a registry of the calls and of the latest status of the pools.
    #[must_use]
    pub fn with_pools(health: Arc<Health>) -> Self {
        let mut metrics = Self::new();
        metrics.registry.register_collector(Box::new(PoolCollector(health)));
        metrics
    }

    /// Records a finished call.
    pub fn observe(&self, driver: &str, method: &'static str, code: &'static str, elapsed: Duration) {
        let labels =
            Operation { driver_name: driver.to_owned(), method_name: method, grpc_status_code: code };
        self.operations.get_or_create(&labels).observe(elapsed.as_secs_f64());
        (self.after_call)();
    }

    /// Has a function called after each call that is recorded.
    #[must_use]
    pub fn with_hook(self, after_call: impl Fn() + Send + Sync + 'static) -> Self {
        Self { after_call: Box::new(after_call), ..self }
    }

    /// Returns all metrics in the format of [`CONTENT_TYPE`].
    #[must_use]
    pub fn text(&self) -> String {
        let mut text = String::new();
        match prometheus_client::encoding::text::encode(&mut text, &self.registry) {
            Ok(()) => text,
            // Cannot happen: writing to a String succeeds. Partial output would be worse than none.
            Err(fmt::Error) => String::new(),
        }
    }
}

fn histogram() -> Histogram {
    Histogram::new(BUCKETS)
}

/// Collects the metrics of the pools and of this process.
#[derive(Debug)]
struct PoolCollector(Arc<Health>);

impl Collector for PoolCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let pools = self.0.latest();
        for (name, help, value) in POOL_GAUGES {
            let mut metric = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
            for pool in &pools {
                let label = [("pool", pool.name.as_str())];
                metric.encode_family(&label)?.encode_gauge(&saturating_i64(value(pool)))?;
            }
        }
        encode_left_behind(&mut encoder, self.0.workers_left_behind())?;
        encode_servers(&mut encoder, &self.0.servers())?;
        let activity = self.0.activity();
        let jobs = u64::try_from(activity.jobs).unwrap_or(u64::MAX);
        let gauges = [
            ("orlop_jobs", "Copies that are running or waiting", jobs),
            ("process_resident_memory_bytes", "Resident memory of this process", resident_memory()),
        ];
        for (name, help, value) in gauges {
            encoder
                .encode_descriptor(name, help, None, MetricType::Gauge)?
                .encode_gauge(&saturating_i64(value))?;
        }
        encode_pauses(&mut encoder, &activity.pauses)?;
        let help = "The version of this program";
        let mut build = encoder.encode_descriptor("orlop_build_info", help, None, MetricType::Gauge)?;
        build.encode_family(&[("version", env!("CARGO_PKG_VERSION"))])?.encode_gauge(&1_i64)
    }
}

fn encode_left_behind(encoder: &mut DescriptorEncoder<'_>, groups: Vec<(String, usize)>) -> fmt::Result {
    let help = "Worker processes that were killed and do not end, since their disk does not respond";
    let mut metric = encoder.encode_descriptor("orlop_workers_left_behind", help, None, MetricType::Gauge)?;
    for (group, count) in groups {
        let count = i64::try_from(count).unwrap_or(i64::MAX);
        metric.encode_family(&[("group", group.as_str())])?.encode_gauge(&count)?;
    }
    Ok(())
}

fn encode_servers(encoder: &mut DescriptorEncoder<'_>, servers: &[ServerStatus]) -> fmt::Result {
    let help = "Whether the NFS server responded when it was last asked: 1 or 0";
    let mut metric = encoder.encode_descriptor("orlop_server_up", help, None, MetricType::Gauge)?;
    for status in servers {
        let label = [("server", status.server.as_str())];
        metric.encode_family(&label)?.encode_gauge(&i64::from(status.is_up))?;
    }
    let name = "orlop_server_answer_age_seconds";
    let help = "Seconds since the last answer of the NFS server";
    let mut metric = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
    for (server, age) in servers.iter().filter_map(|status| Some((&status.server, status.age?))) {
        metric.encode_family(&[("server", server.as_str())])?.encode_gauge(&age.as_secs_f64())?;
    }
    Ok(())
}

fn encode_pauses(encoder: &mut DescriptorEncoder<'_>, pauses: &PauseStats) -> fmt::Result {
    let help = "Pauses of the containers that use a volume, for a copy";
    let mut metric = encoder.encode_descriptor("orlop_pauses", help, None, MetricType::Counter)?;
    let results = [("kept", pauses.kept), ("refused", pauses.refused), ("broken", pauses.broken)];
    for (result, count) in results {
        let label = [("result", result)];
        metric.encode_family(&label)?.encode_counter::<NoLabelSet, _, f64>(&count, None)?;
    }
    let help = "Seconds that containers were paused for a copy";
    let mut metric = encoder.encode_descriptor("orlop_pause_seconds", help, None, MetricType::Histogram)?;
    let buckets: Vec<_> = PAUSE_BOUNDS.into_iter().zip(pauses.durations).collect();
    metric.encode_histogram::<NoLabelSet>(pauses.total.as_secs_f64(), pauses.kept, &buckets, None)
}

fn saturating_i64(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

/// Resident memory in bytes, from the second field of `/proc/self/statm`; 0 if it cannot be read.
fn resident_memory() -> u64 {
    let text = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages: u64 = text.split(' ').nth(1).and_then(|word| word.parse().ok()).unwrap_or(0);
    pages.saturating_mul(rustix::param::page_size() as u64)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::dispatch::Dispatch;
    use crate::engine::Engine;
    use crate::engine::request::Tuning;

    #[test]
    fn the_docs_list_every_exposed_metric() {
        let engine = Engine::open(Vec::new(), Tuning::default()).unwrap();
        let health = Health::new(Dispatch::new(Arc::new(engine)));
        let metrics = Metrics::with_pools(Arc::new(health));
        metrics.observe("d", "m", "OK", Duration::from_millis(1));
        let text = metrics.text();
        let exposed: BTreeSet<_> = text
            .lines()
            .filter_map(|line| line.strip_prefix("# TYPE "))
            .filter_map(|line| line.split(' ').next())
            .collect();
        assert_eq!(exposed, documented());
        assert!(resident_memory() > 0);
    }

    fn documented() -> BTreeSet<&'static str> {
        include_str!("../docs/metrics.md")
            .lines()
            .filter_map(|line| line.strip_prefix("| `"))
            .filter_map(|line| line.split(['`', '{']).next())
            .map(|name| name.trim_end_matches("_total"))
            .collect()
    }

    #[test]
    fn alerts_and_dashboard_of_the_chart_use_documented_metrics_only() {
        let documented = documented();
        for file in [
            include_str!("../charts/orlop/templates/prometheusrule.yaml"),
            include_str!("../charts/orlop/files/dashboard.json"),
        ] {
            let used: BTreeSet<_> = file
                .lines()
                .filter(|line| line.contains("expr") || line.contains("query") || line.contains("rate("))
                .flat_map(|line| line.split(|letter: char| !letter.is_ascii_alphanumeric() && letter != '_'))
                .filter(|word| word.starts_with("orlop_") || word.starts_with("csi_plugin_"))
                .map(|word| word.trim_end_matches("_count").trim_end_matches("_bucket"))
                .collect();
            assert!(used.len() > 3, "{used:?}");
            assert_eq!(used.difference(&documented).collect::<Vec<_>>(), Vec::<&&str>::new());
        }
    }
}
