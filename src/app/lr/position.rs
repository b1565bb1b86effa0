//! How far a worker has got: its state in a checkpoint.

/// The batch that a worker takes next, and what its batches are made from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Position {
    /// Which pass over the data.
    pub epoch: u32,
    /// Which batch of it.
    pub index: u64,
    /// This worker's rows.
    pub rows: u64,
    /// Rows of a batch.
    pub batch: u32,
    /// Of the order.
    pub seed: u64,
}

impl Position {
    const LENGTH: usize = 32;

    /// 32 little-endian bytes: seed, index, rows, epoch, batch.
    pub fn encode(&self) -> [u8; Position::LENGTH] {
        let mut out = [0; Position::LENGTH];
        for (place, number) in out.chunks_exact_mut(8).zip([self.seed, self.index, self.rows]) {
            place.copy_from_slice(&number.to_le_bytes());
        }
        out[24..28].copy_from_slice(&self.epoch.to_le_bytes());
        out[28..].copy_from_slice(&self.batch.to_le_bytes());
        out
    }

    /// The inverse; nothing for what no worker of a training run has saved.
    pub fn decode(bytes: &[u8]) -> Option<Position> {
        let bytes: &[u8; Position::LENGTH] = bytes.try_into().ok()?;
        let long = |at: usize| bytes[at..at + 8].try_into().map(u64::from_le_bytes).ok();
        let short = |at: usize| bytes[at..at + 4].try_into().map(u32::from_le_bytes).ok();
        Some(Position {
            seed: long(0)?,
            index: long(8)?,
            rows: long(16)?,
            epoch: short(24)?,
            batch: short(28)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_saved_is_understood() {
        let position = Position { epoch: 3, index: 1 << 33, rows: 5000, batch: 64, seed: u64::MAX };
        assert_eq!(Position::decode(&position.encode()), Some(position));
        assert_eq!(Position::decode(&[]), None);
        assert_eq!(Position::decode(&[0; 33]), None);
    }
}
