//! Tasks that another launcher started, `srun` or `mpirun`, become the processes of one job.
//!
//! ```text
//!  task       who am I: PMIx, PMI-1, or variables
//!  meet       the first server, or rank 0, opens a port; the others learn its address and the job's secret (board, file, address)
//!  checkin    all say who and where they are; the leader sees who is missing, decides with `roles`, and tells each its place
//!  lifelines  the connections stay open: the leader sees tasks end that have not joined the job yet
//! ```
//! Nothing of a launcher is linked: PMIx is opened at run time (`pmix`), PMI-1 is text on an inherited socket (`pmi1`).

pub mod board;
pub mod checkin;
pub mod hostfile;
pub mod hostlist;
mod inherited;
pub mod keeper;
pub mod lifelines;
pub mod meet;
pub mod pmi1;
pub mod pmix;
mod rendezvous;
pub mod roles;
pub mod task;
