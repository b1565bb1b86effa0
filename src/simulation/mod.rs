//! Whole jobs under virtual time: the worker's engine and the server's reactor, joined by the simulated network. Every job is
//! a function of its seed, which a failure names.
//!
//! | file | idea |
//! | --- | --- |
//! | `rig` | the nodes of a job, and its control links |
//! | `exact` | what a pull may and must have seen, told from its values |
//! | `random` | a thousand random small jobs, and faults that they find |
//! | `reads` | one-sided pulls that race a writer |
//! | `slots` | 64 workers with one slot each |
//! | `device` | a job on a real RDMA device whose queue pairs fail, in real time |
//! | `faults` | crashed processes, and what the simulation itself finds |

#[cfg(feature = "verbs")]
mod device;
mod exact;
mod faults;
mod random;
mod reads;
mod rig;
mod slots;
