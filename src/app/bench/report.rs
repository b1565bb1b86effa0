//! One measurement, as it is printed.

use serde::Serialize;

use super::latencies::Latencies;
use super::options::Options;
use crate::error::{Error, Result};

/// What was measured. The order of the fields is that of the columns.
#[derive(Debug, Serialize)]
pub struct Report {
    pub op: String,
    pub transport: String,
    /// What it really uses: device, MTU and the like.
    pub transport_detail: String,
    /// Payload of one operation, as fp32 whatever the wire.
    pub bytes: u64,
    pub workers: u32,
    pub servers: u32,
    /// 10^9 payload bytes (as fp32, whatever the wire) a second, of all workers; what goes there and back is counted once.
    pub gbytes_per_second: f64,
    pub ops_per_second: f64,
    /// From the call of an operation until it is done, with `window` of them under way.
    pub p50_us: f64,
    pub p99_us: f64,
    /// Sparse operations only; 0 for others.
    pub keys_per_second: f64,
    pub threads: u32,
    pub consistency: String,
    pub wire: String,
    /// Operations of one worker that may be under way at a time; of `write` and `read` the most that there were.
    pub window: u32,
    /// The time of the slowest worker.
    pub seconds: f64,
}

/// The raw figures of a run.
pub struct Figures<'a> {
    /// Name and detail.
    pub transport: String,
    pub workers: u32,
    pub servers: u32,
    pub threads: u32,
    pub operations: u64,
    pub seconds: f64,
    pub latencies: &'a Latencies,
}

impl Report {
    pub fn new(options: &Options, figures: &Figures<'_>) -> Report {
        let per_second = figures.operations as f64 / figures.seconds.max(1e-9);
        let keys = if options.op.is_sparse() { f64::from(options.keys) } else { 0.0 };
        Report {
            op: options.op.to_string(),
            transport: figures.transport.split(' ').next().unwrap_or_default().to_owned(),
            transport_detail: figures.transport.clone(),
            bytes: options.payload_bytes(),
            workers: figures.workers,
            servers: figures.servers,
            gbytes_per_second: per_second * options.payload_bytes() as f64 / 1e9,
            ops_per_second: per_second,
            p50_us: figures.latencies.quantile_us(0.5),
            p99_us: figures.latencies.quantile_us(0.99),
            keys_per_second: per_second * keys,
            threads: figures.threads,
            consistency: options.consistency.to_string(),
            wire: options.wire.to_string(),
            window: options.window() as u32,
            seconds: figures.seconds,
        }
    }

    /// Prints it as the options ask for it.
    pub fn print(&self, options: &Options) -> Result<()> {
        let encoded = serde_json::to_value(self).and_then(|value| Ok((serde_json::to_string(self)?, value)));
        let (line, value) =
            encoded.map_err(|e| Error::io("encode", "the figures", std::io::Error::other(e)))?;
        if options.json {
            println!("{line}");
        } else if options.csv {
            println!("{}", COLUMNS.join(","));
            let cells: Vec<String> = COLUMNS.iter().map(|&c| plain(&value[c])).collect();
            println!("{}", cells.join(","));
        } else {
            self.print_rows();
        }
        Ok(())
    }

    fn print_rows(&self) {
        let rows = [
            ("operation", format!("{} of {} bytes", self.op, self.bytes)),
            ("transport", self.transport_detail.clone()),
            ("workers, servers", format!("{}, {} of {} threads", self.workers, self.servers, self.threads)),
            ("consistency, wire", format!("{}, {}", self.consistency, self.wire)),
            ("window", self.window.to_string()),
            ("GB per second", format!("{:.3}", self.gbytes_per_second)),
            ("operations per second", format!("{:.0}", self.ops_per_second)),
            ("keys per second", format!("{:.0}", self.keys_per_second)),
            ("p50, p99", format!("{:.1} µs, {:.1} µs", self.p50_us, self.p99_us)),
            ("seconds", format!("{:.2}", self.seconds)),
        ];
        for (name, value) in rows {
            if name != "keys per second" || self.keys_per_second > 0.0 {
                println!("{name:<22} {value}");
            }
        }
    }
}

/// The columns of `--csv`, in the order of the fields.
const COLUMNS: [&str; 16] = [
    "op",
    "transport",
    "transport_detail",
    "bytes",
    "workers",
    "servers",
    "gbytes_per_second",
    "ops_per_second",
    "p50_us",
    "p99_us",
    "keys_per_second",
    "threads",
    "consistency",
    "wire",
    "window",
    "seconds",
];

fn plain(value: &serde_json::Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_field_is_a_column() {
        let report = Report {
            op: "push".to_owned(),
            transport: "tcp".to_owned(),
            transport_detail: "tcp (cubic)".to_owned(),
            bytes: 1,
            workers: 1,
            servers: 1,
            gbytes_per_second: 1.0,
            ops_per_second: 1.0,
            p50_us: 1.0,
            p99_us: 1.0,
            keys_per_second: 0.0,
            threads: 1,
            consistency: "asp".to_owned(),
            wire: "fp32".to_owned(),
            window: 1,
            seconds: 1.0,
        };
        let line = serde_json::to_string(&report).unwrap();
        let at: Vec<usize> = COLUMNS.iter().map(|c| line.find(&format!("\"{c}\":")).unwrap()).collect();
        assert!(at.is_sorted(), "{line}");
        assert_eq!(line.matches("\":").count(), COLUMNS.len());
    }
}
