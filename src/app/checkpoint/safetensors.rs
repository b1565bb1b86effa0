//! Safetensors: u64 length of a JSON header | header | bytes. <https://github.com/huggingface/safetensors>

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::tensors::{Numbers, Tensor};

/// The longest header that readers take.
const MAX_HEADER: u64 = 100_000_000;

#[derive(Serialize, Deserialize)]
struct Entry {
    dtype: String,
    shape: Vec<u64>,
    data_offsets: [u64; 2],
}

/// The header, padded with blanks to a multiple of 8, and its length before it. The arrays' bytes follow in the same order.
pub fn header(tensors: &[Tensor]) -> Result<Vec<u8>, serde_json::Error> {
    let mut at = 0;
    let mut entries = BTreeMap::new();
    for Tensor { name, shape, numbers } in tensors {
        let dtype = if matches!(numbers, Numbers::F32(_)) { "F32" } else { "U64" }.to_owned();
        let end = at + numbers.bytes().len() as u64;
        entries.insert(name, Entry { dtype, shape: shape.clone(), data_offsets: [at, end] });
        at = end;
    }
    let mut text = serde_json::to_vec(&entries)?;
    text.resize(text.len().next_multiple_of(8), b' ');
    Ok([&(text.len() as u64).to_le_bytes()[..], &text].concat())
}

/// The arrays of a file; the error says what is wrong with it.
pub fn read(bytes: &[u8]) -> Result<Vec<Tensor>, String> {
    let (length, rest) = bytes.split_first_chunk::<8>().ok_or("too short for a header")?;
    let length = u64::from_le_bytes(*length);
    if length > MAX_HEADER || length > rest.len() as u64 {
        return Err(format!("a header of {length} bytes"));
    }
    let (header, data) = rest.split_at(length as usize);
    let mut entries: BTreeMap<String, serde_json::Value> =
        serde_json::from_slice(header).map_err(|e| e.to_string())?;
    entries.remove("__metadata__");
    let tensor = |(name, entry): (String, serde_json::Value)| {
        let Entry { dtype, shape, data_offsets: [from, to] } =
            serde_json::from_value(entry).map_err(|e| format!("{name}: {e}"))?;
        let width = match dtype.as_str() {
            "F32" => 4u64,
            "U64" => 8,
            _ => return Err(format!("{name}: expected F32 or U64, found {dtype}")),
        };
        let count = shape.iter().try_fold(width, |n, &d| n.checked_mul(d));
        let part = usize::try_from(from).ok().zip(usize::try_from(to).ok()).and_then(|(a, b)| data.get(a..b));
        match part.filter(|part| Some(part.len() as u64) == count) {
            Some(part) => Ok(Tensor { name, shape, numbers: Numbers::from_bytes(width == 4, part) }),
            None => Err(format!("{name}: bytes {from} to {to} for shape {shape:?}")),
        }
    };
    entries.into_iter().map(tensor).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let tensors = [
            Tensor {
                name: "a".to_owned(),
                shape: vec![2, 2],
                numbers: Numbers::F32(vec![1.0, -2.0, 0.5, 3.0]),
            },
            Tensor { name: "b.keys".to_owned(), shape: vec![1], numbers: Numbers::U64(vec![u64::MAX]) },
        ];
        let mut file = header(&tensors).unwrap();
        assert_eq!(file.len() % 8, 0);
        tensors.iter().for_each(|t| file.extend_from_slice(t.numbers.bytes()));
        assert_eq!(read(&file).unwrap(), tensors);
        assert!(
            String::from_utf8_lossy(&file)
                .contains(r#"{"a":{"dtype":"F32","shape":[2,2],"data_offsets":[0,16]}"#)
        );
    }

    #[test]
    fn other_bytes_are_refused() {
        let file = |json: &str, data: &[u8]| {
            [&(json.len() as u64).to_le_bytes()[..], json.as_bytes(), data].concat()
        };
        for bad in [
            vec![1, 2],
            u64::MAX.to_le_bytes().to_vec(),
            file("[]", &[]),
            file(r#"{"a":{"dtype":"F16","shape":[1],"data_offsets":[0,2]}}"#, &[0; 2]),
            file(r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,8]}}"#, &[0; 8]),
            file(r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}"#, &[0; 4]),
            file(r#"{"a":{"dtype":"U64","shape":[18446744073709551615,2],"data_offsets":[0,0]}}"#, &[]),
        ] {
            assert!(read(&bad).is_err(), "{bad:?}");
        }
        let empty = file(r#"{"__metadata__":{"x":"y"}}"#, &[]);
        assert_eq!(read(&empty).unwrap(), []);
    }
}
