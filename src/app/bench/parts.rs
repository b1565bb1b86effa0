//! How an operation is cut into calls, and where in the worker's memory the values of each call lie.
//!
//! ```text
//!  source   what every operation pushes     | part 0 | part 1 | part 2 |
//!  result   what operation n pulls lies     | part 0 | part 1 | part 2 | part 0 | part 1 | part 2 |
//!           at place n modulo the window      n = 0, 2, 4 …              n = 1, 3, 5 …
//! ```
//! Operation n begins when operation n − window is done, so each result is whole before the next one overwrites it.

use super::options::Options;
use crate::types::DEFAULT_SEGMENT_BYTES;

/// The most payload of one part, in bytes. Longer operations are several parts, as a caller would make them.
const PART_BYTES: u64 = 4 << 20;
/// Frames of pulls that may be under way: below the number of a worker's buffers for the longest frames.
const FRAMES: u64 = 48;
/// The most memory for results, in bytes, unless one alone is longer: the window is lowered to what fits.
const RESULT_BYTES: u64 = 256 << 20;

/// The cut of all operations of one worker. Lengths are in elements (dense) or keys (sparse).
#[derive(Debug, Clone, Copy)]
pub struct Parts {
    stride: u64,
    part: u64,
    /// fp32 of an element or key.
    width: u64,
    window: u64,
    depth: usize,
}

impl Parts {
    /// Operations of rows of `width` fp32, answered by `shards` server threads.
    pub fn new(options: &Options, width: u64, shards: u64) -> Parts {
        let stride = options.stride();
        let part = (PART_BYTES / 4 / width).clamp(1, stride);
        let (parts, window) = (stride.div_ceil(part), options.window() as u64);
        let mut cut = Parts { stride, part, width, window, depth: (window * parts) as usize };
        if options.op.pulls() {
            let depth = cut.answers(options, shards).min(window * parts);
            // So many operations can have one of `depth` parts in a row.
            let reached = (depth - 1).div_ceil(parts) + 1;
            cut.window = window.min(reached).min(RESULT_BYTES / (stride * width * 4)).max(1);
            cut.depth = depth.min(cut.window * parts) as usize;
        }
        cut
    }

    /// Parts whose answers fit the worker's memory for frames, at least one.
    fn answers(&self, options: &Options, shards: u64) -> u64 {
        let segment = u64::from(DEFAULT_SEGMENT_BYTES);
        let bytes = self.part * self.width * 4;
        let aligned = !options.op.is_sparse() && (self.stride * 4).is_multiple_of(segment);
        // Rows travel with their keys, so a sparse frame holds a little less than a segment.
        let frames = match (options.op.is_sparse(), aligned) {
            (true, _) => shards + (bytes + self.part * 16).div_ceil(segment),
            (false, true) => bytes / segment,
            (false, false) => bytes.div_ceil(segment) + 1,
        };
        (FRAMES / frames.max(1)).max(1)
    }

    /// Elements or keys of one operation.
    pub fn stride(&self) -> u64 {
        self.stride
    }

    /// fp32 of an element or key.
    pub fn width(&self) -> u64 {
        self.width
    }

    /// Parts of one operation.
    pub fn count(&self) -> u64 {
        self.stride.div_ceil(self.part)
    }

    /// Operations that may be under way.
    pub fn window(&self) -> u64 {
        self.window
    }

    /// Parts that may be under way.
    pub fn depth(&self) -> usize {
        self.depth
    }

    /// First element or key of a part within its operation, and how many.
    pub fn span(&self, part: u64) -> (u64, u64) {
        let first = part * self.part;
        (first, self.part.min(self.stride - first))
    }

    /// fp32 of one operation, which is the length of the source.
    pub fn floats(&self) -> usize {
        (self.stride * self.width) as usize
    }

    /// fp32 of the results of all operations that may be under way.
    pub fn result_floats(&self) -> usize {
        self.floats() * self.window as usize
    }

    /// The first fp32 of a part in the source.
    pub fn in_source(&self, part: u64) -> usize {
        (part * self.part * self.width) as usize
    }

    /// The first fp32 of an operation's part in the results.
    pub fn in_result(&self, operation: u64, part: u64) -> usize {
        (operation % self.window) as usize * self.floats() + self.in_source(part)
    }

    /// Whole elements or rows that are filled or looked at in one go.
    pub fn chunk(&self) -> u64 {
        (PART_BYTES / 4 / self.width).max(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cut(line: &str) -> Parts {
        let options = Options::of_line(line);
        options.check().unwrap();
        let width = if options.op.is_sparse() { u64::from(options.dim) } else { 1 };
        Parts::new(&options, width, 1)
    }

    const LINES: [&str; 9] = [
        "push --bytes 64",
        "push --bytes 16M --window 3",
        "pull --bytes 1234564 --window 7",
        "push-pull --bytes 12345676 --window 2",
        "push-pull --bytes 64M --window 1",
        "push-pull --bytes 64M --window 4096",
        "latency",
        "sparse-pull --keys 300001 --dim 16 --rows 1000000",
        "sparse-push --keys 200 --dim 16384",
    ];

    #[test]
    fn the_parts_of_an_operation_cover_the_source_once() {
        for line in LINES {
            let cut = cut(line);
            let mut end = 0;
            for part in 0..cut.count() {
                let (first, count) = cut.span(part);
                assert_eq!((cut.in_source(part), first), (end, end as u64 / cut.width()), "{line}");
                assert!(count > 0 && (count == 1 || count * cut.width() * 4 <= PART_BYTES), "{line}");
                end += (count * cut.width()) as usize;
            }
            assert_eq!((end as u64, end), (cut.stride() * cut.width(), cut.floats()), "{line}");
        }
    }

    #[test]
    fn the_operations_of_a_window_cover_the_results_once() {
        for line in LINES {
            let cut = cut(line);
            let mut spans: Vec<_> = (5..5 + cut.window())
                .flat_map(|operation| (0..cut.count()).map(move |part| (operation, part)))
                .map(|(operation, part)| {
                    let at = cut.in_result(operation, part);
                    at..at + (cut.span(part).1 * cut.width()) as usize
                })
                .collect();
            spans.sort_by_key(|span| span.start);
            assert_eq!(spans[0].start, 0, "{line}");
            assert!(spans.windows(2).all(|pair| pair[0].end == pair[1].start), "{line}");
            assert_eq!(spans.last().unwrap().end, cut.result_floats(), "{line}");
        }
    }

    #[test]
    fn windows_follow_what_is_asked_for_and_the_memory() {
        for (line, window, depth) in [
            ("push --bytes 16M --window 3", 3, 12),
            ("push --bytes 64 --window 4096", 4096, 4096),
            ("push-pull --bytes 16M --window 1", 1, 3),
            ("push-pull --bytes 16M", 2, 3),
            ("pull --bytes 64", 4, 4),
            ("pull --bytes 64 --window 4096", 24, 24),
            ("pull --bytes 200M", 1, 3),
            ("pull --bytes 8M --window 4", 2, 3),
            ("sparse-pull --keys 20000000 --dim 8 --rows 40000000", 1, 1),
        ] {
            let cut = cut(line);
            assert_eq!((cut.window(), cut.depth()), (window, depth), "{line}");
        }
    }
}
