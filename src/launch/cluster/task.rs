//! Who am I? What a launcher's variables say about this process.

use std::fmt;
use std::str::FromStr;

use crate::config::{Environment, variable};
use crate::error::{Error, Result};

/// What `--launcher` may be.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Choice {
    /// Whatever started this process; nobody, if no variable says otherwise.
    #[default]
    Auto,
    /// None: the job runs on this machine.
    Local,
    /// `srun`.
    Slurm,
    /// `mpirun`, `mpiexec`.
    Mpi,
    /// None: this process starts the job on other hosts.
    Ssh,
}

impl FromStr for Choice {
    type Err = Error;

    fn from_str(text: &str) -> Result<Choice> {
        Ok(match text {
            "auto" => Choice::Auto,
            "local" => Choice::Local,
            "slurm" => Choice::Slurm,
            "mpi" => Choice::Mpi,
            "ssh" => Choice::Ssh,
            _ => return Err(Error::config("launcher", "auto, local, slurm, mpi or ssh", text)),
        })
    }
}

/// By which means the tasks can tell each other something, as far as the launcher has one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Means {
    /// PMIx, by the first of these libraries.
    Pmix(Vec<String>),
    /// PMI-1 on this descriptor.
    Pmi1(i32),
}

/// One of the processes that a launcher started together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Task {
    /// Who started it, for messages: `srun`.
    pub launcher: &'static str,
    /// Its number and how many there are; a means knows it better.
    pub rank: Option<u32>,
    /// See `rank`.
    pub size: Option<u32>,
    /// In the order of preference.
    pub means: Vec<Means>,
    /// What the launcher calls this start of this job, if it has a name for it: nobody else's.
    pub launch: Option<String>,
    /// Slurm's list of the step's hosts.
    pub nodes: Option<String>,
    /// This process's node.
    pub node: String,
}

impl Task {
    /// What the environment says; `None` for a process that no launcher started. Own variables outdo PMIx, that PMI-1, that
    /// `OMPI_*`, that `SLURM_*`: below `mpirun` inside a Slurm job the last are those of mpirun's daemon.
    pub fn find(choice: Choice, environment: &Environment) -> Result<Option<Task>> {
        let text = |name: &str| environment.text(name);
        let number = |name: &str| environment.value::<u32>(name, "a number");
        if matches!(choice, Choice::Local | Choice::Ssh) {
            return Ok(None);
        }
        let blank = Task {
            launcher: "mpirun",
            rank: None,
            size: None,
            means: Vec::new(),
            launch: None,
            nodes: None,
            node: text("SLURMD_NODENAME").map_or_else(host, str::to_owned),
        };
        if let Some(rank) = number(variable::TASK)? {
            let size = number(variable::TASKS)?;
            let launch = text(variable::LAUNCH).map(str::to_owned);
            return Ok(Some(Task { launcher: "WINDLASS_TASK", rank: Some(rank), size, launch, ..blank }));
        }
        // A batch script has SLURM_PROCID, too; only a step has its own number.
        let step = text("SLURM_STEP_ID").filter(|_| choice != Choice::Mpi);
        let open_mpi = text("OMPI_COMM_WORLD_RANK").is_some();
        let means = means(environment)?;
        if choice == Choice::Slurm && step.is_none() {
            return Err(Error::config("--launcher slurm", "a process that srun started", "no SLURM_STEP_ID"));
        }
        if choice == Choice::Mpi && !open_mpi && means.is_empty() {
            return Err(Error::config(
                "--launcher mpi",
                "a process that mpirun started",
                "no PMI_FD, PMIX_RANK or OMPI_*",
            ));
        }
        let by_slurm = step.is_some() && (choice == Choice::Slurm || !open_mpi);
        let (rank, size) = if open_mpi && !by_slurm {
            (number("OMPI_COMM_WORLD_RANK")?, number("OMPI_COMM_WORLD_SIZE")?)
        } else if text("PMI_RANK").is_some() {
            (number("PMI_RANK")?, number("PMI_SIZE")?)
        } else if by_slurm {
            (number("SLURM_PROCID")?, number("SLURM_STEP_NUM_TASKS")?)
        } else {
            (None, None)
        };
        if rank.is_none() && means.is_empty() {
            return Ok(None);
        }
        let launch = match step {
            Some(step) if by_slurm => text("SLURM_JOB_ID").map(|job| {
                // A requeued job has the same numbers again.
                format!("slurm-{job}.{step}.{}", text("SLURM_RESTART_COUNT").unwrap_or("0"))
            }),
            _ => text("PMIX_NAMESPACE").map(str::to_owned),
        };
        // Slurm's own PMI names the job; MPICH's mpirun, which starts its ranks below a step of its own, does not.
        let hydra = text("PMI_RANK").is_some() && text("PMI_JOBID").is_none();
        let launcher = if by_slurm && !hydra { "srun" } else { "mpirun" };
        let nodes = text("SLURM_STEP_NODELIST").filter(|_| by_slurm).map(str::to_owned);
        Ok(Some(Task { launcher, rank, size, means, launch, nodes, ..blank }))
    }
}

impl fmt::Display for Task {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Task { launcher, rank, size, node, .. } = self;
        let shown = |n: &Option<u32>| n.map_or_else(|| "?".to_owned(), |n| n.to_string());
        write!(f, "rank {} of {} on {node}, started by {launcher}", shown(rank), shown(size))
    }
}

fn means(environment: &Environment) -> Result<Vec<Means>> {
    let mut means = Vec::new();
    if environment.text("PMIX_RANK").is_some() && environment.text("PMIX_NAMESPACE").is_some() {
        let mut libraries = vec!["libpmix.so.2".to_owned()];
        // Open MPI 5 brings its own.
        if let Some(prefix) = environment.text("PMIX_PREFIX") {
            libraries
                .extend(["lib/libpmix.so.2", "lib/openmpi/libpmix.so.2"].map(|l| format!("{prefix}/{l}")));
        }
        means.push(Means::Pmix(libraries));
    }
    if let Some(fd) = environment.value("PMI_FD", "a number")?
        && environment.text("PMI_RANK").is_some()
    {
        means.push(Means::Pmi1(fd));
    }
    Ok(means)
}

/// The machine's name.
pub fn host() -> String {
    // Only for messages and to tell nodes apart; a system without this file is still served.
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_else(|_| "host".to_owned());
    name.trim().chars().filter(|c| !c.is_control() && !c.is_whitespace()).take(64).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn find(choice: Choice, pairs: &[(&str, &str)]) -> Result<Option<Task>> {
        Task::find(choice, &Environment::from_pairs(pairs.iter().copied()))
    }

    fn auto(pairs: &[(&str, &str)]) -> Task {
        find(Choice::Auto, pairs).unwrap().unwrap()
    }

    const STEP: &[(&str, &str)] = &[
        ("SLURM_JOB_ID", "17"),
        ("SLURM_STEP_ID", "0"),
        ("SLURM_PROCID", "3"),
        ("SLURM_STEP_NUM_TASKS", "6"),
        ("SLURM_STEP_NODELIST", "n[1-2]"),
        ("SLURMD_NODENAME", "n2"),
    ];

    #[test]
    fn slurm_without_pmi() {
        let task = auto(STEP);
        assert_eq!((task.rank, task.size, task.node.as_str()), (Some(3), Some(6), "n2"));
        assert_eq!(task.launch.as_deref(), Some("slurm-17.0.0"));
        assert_eq!(task.to_string(), "rank 3 of 6 on n2, started by srun");
        assert!(task.means.is_empty());
    }

    #[test]
    fn a_batch_script_is_no_task() {
        let batch = [("SLURM_JOB_ID", "17"), ("SLURM_PROCID", "0"), ("SLURM_NTASKS", "6")];
        assert_eq!(find(Choice::Auto, &batch).unwrap(), None);
        assert!(find(Choice::Slurm, &batch).unwrap_err().to_string().contains("SLURM_STEP_ID"));
        assert_eq!(find(Choice::Auto, &[]).unwrap(), None);
        assert!(find(Choice::Mpi, &[]).is_err());
        assert_eq!(find(Choice::Local, STEP).unwrap(), None);
    }

    #[test]
    fn mpirun_inside_slurm_is_mpirun() {
        let mpi = [
            ("OMPI_COMM_WORLD_RANK", "1"),
            ("OMPI_COMM_WORLD_SIZE", "4"),
            ("PMIX_RANK", "1"),
            ("PMIX_NAMESPACE", "123"),
        ];
        let task = auto(&[STEP, &mpi].concat());
        assert_eq!((task.rank, task.size, task.launcher), (Some(1), Some(4), "mpirun"));
        assert_eq!((task.launch.as_deref(), task.nodes), (Some("123"), None));
        assert_eq!(task.means, [Means::Pmix(vec!["libpmix.so.2".into()])]);
    }

    #[test]
    fn whoever_speaks_pmi_in_a_step_is_named() {
        let pmi = [("PMI_FD", "5"), ("PMI_RANK", "1"), ("PMI_SIZE", "4")];
        let hydra = auto(&[STEP, &pmi].concat());
        assert_eq!(hydra.to_string(), "rank 1 of 4 on n2, started by mpirun");
        let slurm = auto(&[STEP, &pmi, &[("PMI_JOBID", "17.0")]].concat());
        assert_eq!(slurm.to_string(), "rank 1 of 4 on n2, started by srun");
        assert_eq!((hydra.launch, hydra.means), (slurm.launch, slurm.means));
    }

    #[test]
    fn pmi_and_our_own_variables_outdo_the_rest() {
        let pmi = [("PMI_FD", "7"), ("PMI_RANK", "2"), ("PMI_SIZE", "5"), ("PMIX_PREFIX", "/opt/p")];
        let task = auto(&pmi);
        assert_eq!((task.rank, task.size, task.means), (Some(2), Some(5), vec![Means::Pmi1(7)]));
        let pmix = [("PMIX_RANK", "2"), ("PMIX_NAMESPACE", "n")];
        let task = auto(&[&pmi[..], &pmix].concat());
        assert_eq!(task.means.len(), 2);
        assert!(matches!(&task.means[0], Means::Pmix(all) if all[2] == "/opt/p/lib/openmpi/libpmix.so.2"));
        let own = [("WINDLASS_TASK", "0"), ("WINDLASS_TASKS", "9")];
        let task = auto(&[&pmi[..], &own].concat());
        assert_eq!((task.rank, task.size, task.means.len()), (Some(0), Some(9), 0));
        let error = find(Choice::Auto, &[("WINDLASS_TASK", "x")]).unwrap_err().to_string();
        assert_eq!(error, "WINDLASS_TASK: expected a number, found x");
    }
}
