//! Man pages and completions, made from the command line's own description, for `scripts/install.sh`.

use std::fs;
use std::path::Path;

use clap::Command;
use clap_complete::Shell;

use crate::error::{Error, Result};

/// Writes `man/man1/…`, and completions for bash, zsh and fish where these look for them below a prefix's `share`.
pub fn write(command: Command, share: &Path) -> Result<()> {
    // A page for each `help COMMAND` would say everything twice.
    let mut command =
        command.disable_help_subcommand(true).mut_subcommands(|c| c.disable_help_subcommand(true));
    let failed = |path: &Path| {
        let path = path.display().to_string();
        move |e| Error::io("write", path, e)
    };
    for (shell, folder) in [
        (Shell::Bash, "bash-completion/completions"),
        (Shell::Zsh, "zsh/site-functions"),
        (Shell::Fish, "fish/vendor_completions.d"),
    ] {
        let folder = share.join(folder);
        fs::create_dir_all(&folder).map_err(failed(&folder))?;
        let written =
            clap_complete::generate_to(shell, &mut command, "windlass", &folder).map_err(failed(&folder))?;
        if shell == Shell::Bash {
            // bash-completion looks for the command's own name.
            fs::rename(&written, folder.join("windlass")).map_err(failed(&written))?;
        }
    }
    let folder = share.join("man/man1");
    fs::create_dir_all(&folder).map_err(failed(&folder))?;
    clap_mangen::generate_to(command, &folder).map_err(failed(&folder))
}
