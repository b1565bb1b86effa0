//! The job's tables: one name, one specification, one number.

use std::collections::{BTreeMap, BTreeSet};

use crate::types::{Rank, TableId, TableSpec};

/// Who waits for a table: the worker's link and its request.
pub type Waiter = (u64, u32);

/// What becomes of a worker's wish to open a table.
#[derive(Debug, Clone, PartialEq)]
pub enum Opening {
    /// It is ready.
    Ready(TableId),
    /// It is new: the servers are to make it. The worker waits.
    Create(TableId),
    /// It is being made. The worker waits.
    Wait,
    /// It can't be.
    Refused(String),
}

#[derive(Debug)]
struct Entry {
    spec: TableSpec,
    /// Servers that have not made it yet.
    missing: BTreeSet<Rank>,
    waiters: Vec<Waiter>,
    /// Why a server could not make it.
    failed: Option<String>,
}

/// All tables, by number.
#[derive(Debug)]
pub struct Catalogue {
    /// The most tables.
    limit: usize,
    entries: Vec<Entry>,
    by_name: BTreeMap<String, TableId>,
}

impl Catalogue {
    /// One of at most `limit` tables.
    pub fn new(limit: usize) -> Catalogue {
        Catalogue { limit, entries: Vec::new(), by_name: BTreeMap::new() }
    }

    /// `waiter` wants a table like `spec`; `servers` have to make it if it is new.
    pub fn open(&mut self, waiter: Waiter, spec: &TableSpec, servers: u32) -> Opening {
        if let Err(error) = spec.validate() {
            return Opening::Refused(error.to_string());
        }
        if let Some(&table) = self.by_name.get(&spec.name) {
            return self.reopen(table, waiter, spec);
        }
        if self.entries.len() >= self.limit {
            return Opening::Refused(format!("a job has at most {} tables (--tables)", self.limit));
        }
        // Bounded by the limit.
        let table = self.entries.len() as TableId;
        self.by_name.insert(spec.name.clone(), table);
        let missing = (0..servers).collect();
        self.entries.push(Entry { spec: spec.clone(), missing, waiters: vec![waiter], failed: None });
        Opening::Create(table)
    }

    fn reopen(&mut self, table: TableId, waiter: Waiter, spec: &TableSpec) -> Opening {
        let entry = &mut self.entries[table as usize];
        if !same(&entry.spec, spec) {
            return Opening::Refused(format!(
                "table {:?} is open as: {}; asked for as: {spec}",
                spec.name, entry.spec
            ));
        }
        if let Some(reason) = &entry.failed {
            return Opening::Refused(reason.clone());
        }
        if entry.missing.is_empty() {
            return Opening::Ready(table);
        }
        entry.waiters.push(waiter);
        Opening::Wait
    }

    /// A table that the job goes on with: the servers have to make it, nobody waits yet. Nothing where there can't be one more.
    pub fn restore(&mut self, spec: &TableSpec, servers: u32) -> Option<TableId> {
        match self.open((0, 0), spec, servers) {
            Opening::Create(table) => {
                self.entries[table as usize].waiters.clear();
                Some(table)
            }
            _ => None,
        }
    }

    /// A server has made a table. Gives those who waited once all have, or `None` if nobody asked this server for it.
    pub fn ready(&mut self, table: TableId, server: Rank) -> Option<Vec<Waiter>> {
        let entry = self.entries.get_mut(table as usize)?;
        if !entry.missing.remove(&server) {
            return None;
        }
        if entry.missing.is_empty() && entry.failed.is_none() {
            return Some(std::mem::take(&mut entry.waiters));
        }
        Some(Vec::new())
    }

    /// A server can't make a table. Gives those who waited, or `None` if nobody asked this server for it.
    pub fn fail(&mut self, table: TableId, server: Rank, reason: &str) -> Option<Vec<Waiter>> {
        let entry = self.entries.get_mut(table as usize)?;
        if !entry.missing.remove(&server) {
            return None;
        }
        entry.failed.get_or_insert_with(|| reason.to_owned());
        Some(std::mem::take(&mut entry.waiters))
    }

    /// A table's specification.
    pub fn spec(&self, table: TableId) -> Option<&TableSpec> {
        self.entries.get(table as usize).map(|entry| &entry.spec)
    }

    /// The specifications of all, by number.
    pub fn specs(&self) -> Vec<TableSpec> {
        self.entries.iter().map(|entry| entry.spec.clone()).collect()
    }

    /// Number of tables.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }
}

/// Equal, where two NaN of the same bits are equal too: a spec must always equal itself.
fn same(a: &TableSpec, b: &TableSpec) -> bool {
    let bits = |spec: &TableSpec| -> Vec<u32> {
        spec.optimizer.parameters.iter().map(|(_, value)| value.to_bits()).collect()
    };
    let without = |spec: &TableSpec| {
        let mut spec = spec.clone();
        spec.optimizer.parameters.iter_mut().for_each(|(_, value)| *value = 0.0);
        spec
    };
    bits(a) == bits(b) && without(a) == without(b)
}
