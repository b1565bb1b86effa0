//! The parameters of a checkpoint as named arrays, and back.

use std::collections::BTreeMap;

use crate::checkpoint::{Cut, FileWriter, SectionId, SectionKind};
use crate::error::{Error, Result};
use crate::store::Optimizers;
use crate::types::{BucketId, Initial, Key, TableId, TableKind, TableSpec};

/// Numbers of one kind.
#[derive(Debug, Clone, PartialEq)]
pub enum Numbers {
    F32(Vec<f32>),
    U64(Vec<u64>),
}

impl Numbers {
    /// Little-endian.
    pub fn bytes(&self) -> &[u8] {
        match self {
            Numbers::F32(values) => bytemuck::cast_slice(values),
            Numbers::U64(values) => bytemuck::cast_slice(values),
        }
    }

    /// From bytes of a whole number of them.
    pub fn from_bytes(is_float: bool, bytes: &[u8]) -> Numbers {
        let four = |b: &[u8]| bytemuck::pod_read_unaligned::<f32>(b);
        let eight = |b: &[u8]| bytemuck::pod_read_unaligned::<u64>(b);
        match is_float {
            true => Numbers::F32(bytes.chunks_exact(4).map(four).collect()),
            false => Numbers::U64(bytes.chunks_exact(8).map(eight).collect()),
        }
    }

    /// How many.
    pub fn len(&self) -> usize {
        match self {
            Numbers::F32(values) => values.len(),
            Numbers::U64(values) => values.len(),
        }
    }
}

/// A named array, row-major.
#[derive(Debug, Clone, PartialEq)]
pub struct Tensor {
    pub name: String,
    pub shape: Vec<u64>,
    pub numbers: Numbers,
}

/// A dense table is one array of its shape; a sparse one its keys, ascending, and as many rows.
pub fn of_table(cut: &Cut, table: TableId, spec: &TableSpec) -> Result<Vec<Tensor>> {
    match &spec.kind {
        TableKind::Dense { shape, .. } => {
            let numbers = Numbers::F32(dense(cut, table, spec)?);
            Ok(vec![Tensor { name: spec.name.clone(), shape: shape.clone(), numbers }])
        }
        TableKind::Sparse { dim, .. } => {
            let rows = sparse(cut, table, spec)?;
            let count = rows.len() as u64;
            let keys = Numbers::U64(rows.keys().copied().collect());
            let values = Numbers::F32(rows.into_values().flatten().collect());
            let name = |part: &str| format!("{}.{part}", spec.name);
            Ok(vec![
                Tensor { name: name("keys"), shape: vec![count], numbers: keys },
                Tensor { name: name("rows"), shape: vec![count, u64::from(*dim)], numbers: values },
            ])
        }
    }
}

fn dense(cut: &Cut, table: TableId, spec: &TableSpec) -> Result<Vec<f32>> {
    let initial = Initial::new(spec.initializer, &spec.name);
    let mut values = Vec::new();
    for bucket in 0..spec.buckets() {
        let Some(range) = spec.segment_range(bucket) else { continue };
        match cut.find(SectionId { kind: SectionKind::Parameters, table, bucket }) {
            Some((file, section)) => values.extend(file.read_floats(section)?),
            None => {
                let start = values.len();
                values.resize(start + range.len() as usize, 0.0);
                initial.fill_range(range.start(), &mut values[start..]);
            }
        }
    }
    Ok(values)
}

/// The rows of a sparse table by key, without state.
pub fn sparse(cut: &Cut, table: TableId, spec: &TableSpec) -> Result<BTreeMap<Key, Vec<f32>>> {
    let dim = spec.width() as usize;
    let mut all = BTreeMap::new();
    for bucket in 0..spec.buckets() {
        let find = |kind| cut.find(SectionId { kind, table, bucket });
        let (Some((file, keys)), Some((_, rows))) = (find(SectionKind::Keys), find(SectionKind::Rows)) else {
            continue;
        };
        let (keys, rows) = (file.read_keys(keys)?, file.read_floats(rows)?);
        let stride = rows.len() / keys.len().max(1);
        if stride < dim {
            let expected = format!("rows of at least {dim} fp32 in bucket {bucket}");
            return Err(Error::config(format!("table \"{}\"", spec.name), expected, stride));
        }
        all.extend(keys.into_iter().zip(rows.chunks_exact(stride)).map(|(k, row)| (k, row[..dim].to_vec())));
    }
    Ok(all)
}

/// Writes a table's arrays as a shard's sections, with state 0. Tables that `tensors` lack are left out, so that they begin anew.
pub fn write_table(
    file: &mut FileWriter,
    table: TableId,
    spec: &TableSpec,
    tensors: &BTreeMap<String, Tensor>,
) -> Result<()> {
    let of = |name: &str| format!("table \"{}\": {name}", spec.name);
    let optimizer = Optimizers::default().build(&spec.optimizer)?;
    let (planes, scalars) = (optimizer.state_width(), optimizer.scalars());
    if optimizer.weights_follow_state() {
        let expected = "an update rule whose weights do not follow from its state";
        return Err(Error::config(of("optimizer"), expected, &spec.optimizer.name));
    }
    let take = |name: &str, shape: &[u64]| match tensors.get(name) {
        Some(tensor) if tensor.shape == shape => Ok(tensor),
        found => {
            let found = found.map_or("none".to_owned(), |tensor| format!("{:?}", tensor.shape));
            Err(Error::config(name.to_owned(), format!("an array of shape {shape:?}"), found))
        }
    };
    match &spec.kind {
        TableKind::Dense { shape, .. } => {
            if !tensors.contains_key(&spec.name) {
                return Ok(());
            }
            let Numbers::F32(values) = &take(&spec.name, shape)?.numbers else {
                return Err(Error::config(of("values"), "fp32", "u64"));
            };
            for bucket in 0..spec.buckets() {
                let Some(range) = spec.segment_range(bucket) else { continue };
                let part = &values[range.start() as usize..range.end() as usize];
                let state = vec![0f32; part.len() * planes + scalars];
                let id = |kind| SectionId { kind, table, bucket };
                file.section(id(SectionKind::Parameters), 0, bytemuck::cast_slice(part))?;
                file.section(id(SectionKind::State), 0, bytemuck::cast_slice(&state))?;
            }
        }
        TableKind::Sparse { dim, .. } => {
            let (keys, rows) = (format!("{}.keys", spec.name), format!("{}.rows", spec.name));
            let Some(found) = tensors.get(&keys) else { return Ok(()) };
            let rows = take(&rows, &[found.numbers.len() as u64, u64::from(*dim)])?;
            let (Numbers::U64(keys), Numbers::F32(rows)) = (&found.numbers, &rows.numbers) else {
                return Err(Error::config(of("keys and rows"), "u64 and fp32", "other numbers"));
            };
            let mut buckets: BTreeMap<BucketId, (Vec<Key>, Vec<f32>)> = BTreeMap::new();
            for (&key, row) in keys.iter().zip(rows.chunks_exact(*dim as usize)) {
                let (keys, rows) = buckets.entry(spec.bucket_of(key)).or_default();
                keys.push(key);
                rows.extend_from_slice(row);
                rows.resize(rows.len() + *dim as usize * planes + scalars, 0.0);
            }
            for (bucket, (keys, rows)) in buckets {
                let id = |kind| SectionId { kind, table, bucket };
                file.section(id(SectionKind::Keys), 0, bytemuck::cast_slice(&keys))?;
                file.section(id(SectionKind::Rows), 0, bytemuck::cast_slice(&rows))?;
            }
        }
    }
    Ok(())
}
