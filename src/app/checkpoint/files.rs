//! Export and import: checkpoints to files of other programs and back.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::Path;

use super::Format;
use super::tensors::{Numbers, Tensor, of_table, sparse, write_table};
use super::{npz, safetensors};
use crate::checkpoint::{
    Cut, FileKind, FileWriter, Folder, Header, Manifest, SectionId, SectionKind, shard_name,
};
use crate::error::{Error, Result};
use crate::types::{ShardId, TableId, TableKind, TableSpec};

/// The most features of a LIBLINEAR model.
const MAX_FEATURES: u64 = 1 << 30;

/// Writes the tables of a checkpoint, or only `table`, to `out`.
pub fn export(cut: &Cut, format: Format, table: Option<&str>, out: &Path) -> Result<()> {
    let tables: Vec<(TableId, &TableSpec)> = (0..).zip(&cut.manifest().tables).collect();
    let chosen: Vec<_> =
        tables.into_iter().filter(|(_, spec)| table.is_none_or(|name| name == spec.name)).collect();
    if chosen.is_empty() {
        let names: Vec<&str> = cut.manifest().tables.iter().map(|spec| spec.name.as_str()).collect();
        return Err(Error::config(
            "--table",
            format!("one of {}", names.join(", ")),
            table.unwrap_or("none"),
        ));
    }
    let failed = |e| Error::io("write", out.display(), e);
    let mut file = BufWriter::new(File::create(out).map_err(failed)?);
    if format == Format::Libsvm {
        let [(id, spec)] = chosen[..] else {
            return Err(Error::config("--table", "the one to write", format!("{} tables", chosen.len())));
        };
        liblinear(cut, id, spec, &mut file, out)?;
    } else {
        let mut tensors = Vec::new();
        for (id, spec) in chosen {
            tensors.extend(of_table(cut, id, spec)?);
        }
        if format == Format::Npz {
            let archive = npz::write(&tensors)
                .ok_or_else(|| Error::config("npz", "arrays below 4 GiB: take safetensors", "more"))?;
            file.write_all(&archive).map_err(failed)?;
        } else {
            let header = safetensors::header(&tensors).map_err(|e| failed(std::io::Error::other(e)))?;
            file.write_all(&header).map_err(failed)?;
            tensors.iter().try_for_each(|tensor| file.write_all(tensor.numbers.bytes())).map_err(failed)?;
        }
    }
    file.into_inner().map_err(|e| failed(e.into_error()))?.sync_all().map_err(failed)
}

/// One weight for each feature; feature n, from 1, is key n − 1.
fn liblinear(cut: &Cut, id: TableId, spec: &TableSpec, file: &mut impl Write, out: &Path) -> Result<()> {
    let of = || format!("table \"{}\" as libsvm", spec.name);
    let weights: Vec<f32> = match &spec.kind {
        TableKind::Dense { .. } => match of_table(cut, id, spec)?.pop().map(|tensor| tensor.numbers) {
            Some(Numbers::F32(values)) => values,
            _ => Vec::new(),
        },
        TableKind::Sparse { dim: 1, .. } => {
            let rows = sparse(cut, id, spec)?;
            let features = rows.last_key_value().map_or(0, |(&key, _)| key.saturating_add(1));
            if features > MAX_FEATURES {
                return Err(Error::config(of(), format!("keys below {MAX_FEATURES}"), features - 1));
            }
            let mut weights = vec![0.0; features as usize];
            rows.iter().for_each(|(&key, row)| weights[key as usize] = row[0]);
            weights
        }
        TableKind::Sparse { dim, .. } => return Err(Error::config(of(), "rows of 1", dim)),
    };
    let head =
        format!("solver_type L2R_LR\nnr_class 2\nlabel 1 -1\nnr_feature {}\nbias -1\nw\n", weights.len());
    let mut write =
        |text: String| file.write_all(text.as_bytes()).map_err(|e| Error::io("write", out.display(), e));
    write(head)?;
    weights.iter().try_for_each(|weight| write(format!("{weight}\n")))
}

/// Adds a checkpoint with the arrays of `path`, made like another one, to `folder`. Gives its number. After a failure nothing of it is left.
pub fn import(path: &Path, format: Format, like: &Cut, folder: &Folder) -> Result<u64> {
    let bytes = fs::read(path).map_err(|e| Error::io("read", path.display(), e))?;
    let read = match format {
        Format::Safetensors => safetensors::read(&bytes),
        Format::Npz => npz::read(&bytes),
        Format::Libsvm => return Err(Error::config("--format", "safetensors or npz", "libsvm")),
    };
    let tensors =
        read.map_err(|found| Error::config(path.display().to_string(), "arrays named after tables", found))?;
    let mut tensors: BTreeMap<String, Tensor> = tensors.into_iter().map(|t| (t.name.clone(), t)).collect();
    folder.add(|draft, number| write(draft, number, like.manifest().clone(), path, &mut tensors))
}

/// Writes cut `number` of `folder`, with the arrays that `path` had, and commits it.
fn write(
    folder: &Folder,
    number: u64,
    Manifest { workers, tables, writer, .. }: Manifest,
    path: &Path,
    tensors: &mut BTreeMap<String, Tensor>,
) -> Result<()> {
    let shard = ShardId { server: 0, thread: 0 };
    let header = Header { kind: FileKind::Shard, clock: 0, shard };
    let target = folder.begin(number)?.join(shard_name(shard));
    let mut file = FileWriter::create(folder.storage().clone(), &target, header)?;
    let specs: BTreeMap<TableId, &TableSpec> = (0..).zip(&tables).collect();
    file.section(SectionId::whole(SectionKind::Specs), 0, &serde_json::to_vec(&specs).unwrap_or_default())?;
    for (id, spec) in specs {
        write_table(&mut file, id, spec, tensors)?;
        let parts = ["", ".keys", ".rows"].map(|part| format!("{}{part}", spec.name));
        parts.iter().for_each(|name| drop(tensors.remove(name)));
    }
    if let Some(name) = tensors.keys().next() {
        return Err(Error::config(path.display().to_string(), "arrays named after tables", name));
    }
    let files = vec![file.finish()?, folder.write_states(number, 0, &vec![Vec::new(); workers as usize])?];
    let run = Manifest::new_run()?;
    folder.commit(number, &Manifest { writer, run, clock: 0, workers, tables, files })
}
