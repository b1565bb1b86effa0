//! NumPy's `.npz`: a ZIP archive of `.npy` files that are stored as they are.
//!
//! <https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html>, and PKWARE's APPNOTE 4.3 for the archive.

use super::tensors::{Numbers, Tensor};

const LOCAL: u32 = 0x0403_4b50;
const CENTRAL: u32 = 0x0201_4b50;
const END: u32 = 0x0605_4b50;
const NPY: &[u8] = b"\x93NUMPY\x01\x00";

/// The whole archive; nothing where it would be 4 GiB or more, which needs extensions that this does not write.
pub fn write(tensors: &[Tensor]) -> Option<Vec<u8>> {
    let (mut out, mut central) = (Vec::new(), Vec::new());
    for tensor in tensors {
        let name = format!("{}.npy", tensor.name);
        let data = [npy_header(tensor), tensor.numbers.bytes().to_vec()].concat();
        let at = u32::try_from(out.len()).ok()?;
        let length = u32::try_from(data.len()).ok()?;
        // Version 2.0; no flags; stored; 1980-01-01.
        let mut common = Vec::new();
        for number in [20u16, 0, 0, 0, 0x21] {
            common.extend_from_slice(&number.to_le_bytes());
        }
        for number in [crc32(&data), length, length] {
            common.extend_from_slice(&number.to_le_bytes());
        }
        common.extend_from_slice(&u16::try_from(name.len()).ok()?.to_le_bytes());
        common.extend_from_slice(&[0; 2]);
        out.extend_from_slice(&LOCAL.to_le_bytes());
        out.extend_from_slice(&common);
        out.extend_from_slice(name.as_bytes());
        out.extend_from_slice(&data);
        central.extend_from_slice(&CENTRAL.to_le_bytes());
        central.extend_from_slice(&20u16.to_le_bytes());
        central.extend_from_slice(&common);
        central.extend_from_slice(&[0; 10]);
        central.extend_from_slice(&at.to_le_bytes());
        central.extend_from_slice(name.as_bytes());
    }
    let at = u32::try_from(out.len()).ok()?;
    let count = u16::try_from(tensors.len()).ok()?;
    out.extend_from_slice(&central);
    out.extend_from_slice(&END.to_le_bytes());
    out.extend_from_slice(&[0; 4]);
    out.extend_from_slice(&count.to_le_bytes());
    out.extend_from_slice(&count.to_le_bytes());
    out.extend_from_slice(&u32::try_from(central.len()).ok()?.to_le_bytes());
    out.extend_from_slice(&at.to_le_bytes());
    out.extend_from_slice(&[0; 2]);
    Some(out)
}

fn npy_header(tensor: &Tensor) -> Vec<u8> {
    let kind = if matches!(tensor.numbers, Numbers::F32(_)) { "<f4" } else { "<u8" };
    let shape: String = tensor.shape.iter().map(|d| format!("{d},")).collect();
    let mut text = format!("{{'descr': '{kind}', 'fortran_order': False, 'shape': ({shape}), }}");
    let whole = (NPY.len() + 2 + text.len() + 1).next_multiple_of(64);
    text.push_str(&" ".repeat(whole - NPY.len() - 2 - text.len() - 1));
    text.push('\n');
    [NPY, &(text.len() as u16).to_le_bytes(), text.as_bytes()].concat()
}

/// The arrays of an archive; the error says what is wrong with it.
pub fn read(bytes: &[u8]) -> Result<Vec<Tensor>, String> {
    let end = bytes.len().checked_sub(22).ok_or("too short for an archive")?;
    let field = Fields(bytes);
    // A comment may follow the end's 22 bytes.
    let end = (end.saturating_sub(u16::MAX.into())..=end).rev().find(|&at| field.u32(at) == Some(END));
    let end = end.ok_or("no archive's end")?;
    let count = field.u16(end + 10).ok_or("no number of files")?;
    let mut at = field.u32(end + 16).ok_or("no directory")? as usize;
    let mut tensors = Vec::new();
    for _ in 0..count {
        let bad = || format!("a directory entry at byte {at}");
        if field.u32(at) != Some(CENTRAL) || field.u16(at + 10) != Some(0) {
            return Err(format!("{}: expected a file that is stored, not compressed", bad()));
        }
        let length = field.u32(at + 20).ok_or_else(bad)? as usize;
        let sizes = [28, 30, 32].map(|offset| field.u16(at + offset).map(usize::from));
        let [Some(name), Some(extra), Some(comment)] = sizes else { return Err(bad()) };
        let local = field.u32(at + 42).ok_or_else(bad)? as usize;
        let title = bytes.get(at + 46..at + 46 + name).ok_or_else(bad)?;
        let title = String::from_utf8_lossy(title).trim_end_matches(".npy").to_owned();
        let skip = [26, 28].map(|offset| field.u16(local.saturating_add(offset)).map(usize::from));
        let [Some(skip_name), Some(skip_extra)] = skip else { return Err(bad()) };
        let start = local + 30 + skip_name + skip_extra;
        let data = bytes.get(start..start.saturating_add(length)).ok_or_else(bad)?;
        if field.u32(at + 16) != Some(crc32(data)) {
            return Err(format!("{title}: CRC"));
        }
        tensors.push(npy(title, data)?);
        at += 46 + name + extra + comment;
    }
    Ok(tensors)
}

fn npy(name: String, data: &[u8]) -> Result<Tensor, String> {
    let bad = |what: &str| format!("{name}: {what}");
    let rest = data.strip_prefix(NPY).ok_or_else(|| bad("expected the npy format 1.0"))?;
    let (length, rest) = rest.split_first_chunk::<2>().ok_or_else(|| bad("no header"))?;
    let (header, data) = rest
        .split_at_checked(u16::from_le_bytes(*length).into())
        .ok_or_else(|| bad("a header that is cut short"))?;
    let header = String::from_utf8_lossy(header);
    let is_float = header.contains("'<f4'");
    if !is_float && !header.contains("'<u8'") || header.contains("True") {
        return Err(bad("expected little-endian f4 or u8 in C order"));
    }
    let inside = header.split_once("'shape': (").and_then(|(_, rest)| rest.split_once(')'));
    let (inside, _) = inside.ok_or_else(|| bad("no shape"))?;
    let sizes = inside.split(',').map(str::trim).filter(|d| !d.is_empty()).map(str::parse);
    let shape: Vec<u64> = sizes.collect::<Result<_, _>>().map_err(|_| bad("a shape of whole numbers"))?;
    let width = if is_float { 4u64 } else { 8 };
    if shape.iter().try_fold(width, |n, &d| n.checked_mul(d)) != Some(data.len() as u64) {
        return Err(bad("another number of values than its shape says"));
    }
    Ok(Tensor { shape, numbers: Numbers::from_bytes(is_float, data), name })
}

struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn u16(&self, at: usize) -> Option<u16> {
        self.0.get(at..at.checked_add(2)?)?.try_into().ok().map(u16::from_le_bytes)
    }

    fn u32(&self, at: usize) -> Option<u32> {
        self.0.get(at..at.checked_add(4)?)?.try_into().ok().map(u32::from_le_bytes)
    }
}

/// ZIP's CRC-32 (reflected 0x04C11DB7).
fn crc32(bytes: &[u8]) -> u32 {
    let table: [u32; 256] = std::array::from_fn(|byte| {
        (0..8).fold(byte as u32, |c, _| if c & 1 == 1 { c >> 1 ^ 0xEDB8_8320 } else { c >> 1 })
    });
    !bytes.iter().fold(!0, |c, &byte| table[((c ^ u32::from(byte)) & 0xFF) as usize] ^ c >> 8)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tensors() -> Vec<Tensor> {
        vec![
            Tensor { name: "a".to_owned(), shape: vec![3], numbers: Numbers::F32(vec![1.0, -2.0, 0.5]) },
            Tensor { name: "b.keys".to_owned(), shape: vec![1, 1], numbers: Numbers::U64(vec![7]) },
        ]
    }

    #[test]
    fn the_check_value_of_crc32() {
        assert_eq!(crc32(b"123456789"), 0xCBF4_3926);
    }

    #[test]
    fn what_is_written_is_read() {
        let file = write(&tensors()).unwrap();
        assert_eq!(read(&file).unwrap(), tensors());
        assert_eq!(npy_header(&tensors()[0]).len() % 64, 0);
    }

    /// Cut short or changed anywhere it is refused, or means the same: a date is nobody's business.
    #[test]
    fn other_bytes_are_refused() {
        let file = write(&tensors()).unwrap();
        for length in 0..file.len() {
            assert!(read(&file[..length]).is_err(), "{length}");
        }
        for at in 0..file.len() {
            let mut bad = file.clone();
            bad[at] ^= 0xFF;
            if let Ok(read) = read(&bad) {
                assert!(read.iter().zip(tensors()).all(|(a, b)| a.numbers == b.numbers), "{at}");
            }
        }
    }
}
