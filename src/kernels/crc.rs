//! CRC32C of a header: eight words, which a CPU with SSE 4.2 takes in as many instructions. What `crc32c` does for any length is
//! several times that, and a small push_pull has six headers.

/// Bytes of a header before its checksum.
const BYTES: usize = 60;

/// The CRC32C of all of a header but its last four bytes.
pub fn header_crc(header: &[u8; 64]) -> u32 {
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("sse4.2") {
        // SAFETY: the CPU has the instructions.
        return unsafe { by_instruction(header) };
    }
    crc32c::crc32c(&header[..BYTES])
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "sse4.2")]
fn by_instruction(header: &[u8; 64]) -> u32 {
    use std::arch::x86_64::{_mm_crc32_u32, _mm_crc32_u64};
    let (words, _) = header.as_chunks::<8>();
    let crc =
        words[..BYTES / 8].iter().fold(u32::MAX.into(), |crc, w| _mm_crc32_u64(crc, u64::from_le_bytes(*w)));
    let [a, b, c, d, ..] = words[BYTES / 8];
    !_mm_crc32_u32(crc as u32, u32::from_le_bytes([a, b, c, d]))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_header_has_the_checksum_that_any_bytes_have(half in proptest::array::uniform32(any::<u8>()), more in any::<u64>()) {
            let mut header = [0; 64];
            header[..32].copy_from_slice(&half);
            header[24..56].copy_from_slice(&half.map(|byte| byte.rotate_left(3)));
            header[56..].copy_from_slice(&more.to_le_bytes());
            prop_assert_eq!(header_crc(&header), crc32c::crc32c(&header[..BYTES]));
        }
    }
}
