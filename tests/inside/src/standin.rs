// SPDX-License-Identifier: GPL-2.0-only

//! Programs that take the Launcher's place and do what it never would.
//!
//! Each is this same program, started again by a case with the word [`STAND_IN`] and a name. So
//! whatever it does to itself (forks, signals, limits, a death in the middle) happens to a process
//! of its own, and its end shows what the Host gives back.

mod calls;
mod costs;
mod exchange;
mod faults;
mod fuzz;
mod leaving;
mod lent;
mod life;
mod memory;
mod order;
mod pointers;
mod signals;
mod tasks;

use std::fmt::Debug;

use anyhow::{Context, Result, anyhow, bail, ensure};
use nix::errno::Errno;

use crate::tiny::say;

/// The argument with which this program is a stand-in.
pub const STAND_IN: &str = "stand-in";

/// What a stand-in does, with its further arguments.
type Body = fn(&[String]) -> Result<()>;

/// All stand-ins by name.
const STAND_INS: &[(&str, Body)] = &[
    ("costs", costs::costs),
    ("lengths", calls::lengths),
    ("vectors", calls::vectors),
    ("others", calls::others),
    ("pointers", pointers::pointers),
    ("races", pointers::races),
    ("initialize", order::initialize),
    ("after-the-end", order::after_the_end),
    ("break", order::breaks),
    ("crowd", order::crowd),
    ("wrong-tasks", tasks::wrong_tasks),
    ("exec", tasks::exec),
    ("after-exec", tasks::after_exec),
    ("orphan", tasks::orphan),
    ("setuid", tasks::setuid),
    ("memory-kinds", memory::kinds),
    ("memory-changes", memory::changes),
    ("lent", lent::lent),
    ("storm", signals::storm),
    ("sums", leaving::sums),
    ("holder", leaving::holder),
    ("talk", exchange::talk),
    ("run", life::run),
    ("mortal", life::mortal),
    ("big", life::big),
    ("hundred", life::hundred),
    ("fuzz-device", fuzz::device),
    ("hungry", faults::hungry),
    ("memory-taken", faults::memory_taken),
    ("initialize-signals", faults::initialize_signals),
];

/// Is the stand-in of that name, and returns its exit status.
pub fn main(words: &[String]) -> i32 {
    // Rust's runtime has handlers for these two, which let the first signal pass.
    for signal in [libc::SIGSEGV, libc::SIGBUS] {
        // SAFETY: What the kernel does by itself needs no handler.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
    }
    let result = match words.split_first() {
        Some((name, rest)) => match STAND_INS.iter().find(|(known, _)| known == name) {
            Some((_, body)) => body(rest).with_context(|| name.clone()),
            None => Err(anyhow!("there is no stand-in called {name:?}")),
        },
        None => Err(anyhow!("which stand-in?")),
    };
    match result {
        Ok(()) => {
            println!("well");
            0
        }
        Err(error) => {
            println!("{error:#}");
            1
        }
    }
}

/// A system call by its number, for what no library would let through.
///
/// # Safety
///
/// Whatever the call does with its arguments must be allowed to happen to this process: where it
/// writes, there is nothing or nothing that is in use.
unsafe fn call(number: libc::c_long, arguments: &[usize]) -> Result<usize, i32> {
    let mut all = [0; 6];
    all[..arguments.len()].copy_from_slice(arguments);
    let [a, b, c, d, e, f] = all;
    // SAFETY: By this function's contract.
    let answer = unsafe { libc::syscall(number, a, b, c, d, e, f) };
    match usize::try_from(answer) {
        Ok(answer) => Ok(answer),
        Err(_) => Err(Errno::last_raw()),
    }
}

/// Checks an answer of the system.
fn expect<T: Debug + PartialEq>(
    what: &str,
    answer: Result<T, i32>,
    wanted: Result<T, i32>,
) -> Result<()> {
    ensure!(
        answer == wanted,
        "{what}: {} instead of {}",
        say(answer),
        say(wanted)
    );
    Ok(())
}

/// Checks that an answer is one of two error numbers, or none.
fn expect_error<T: Debug>(what: &str, answer: Result<T, i32>, wanted: i32) -> Result<()> {
    match answer {
        Err(number) if number == wanted => Ok(()),
        other => bail!(
            "{what}: {} instead of {}",
            say(other),
            Errno::from_raw(wanted)
        ),
    }
}

/// Runs something in a child of this process, which must say that all is well by its exit status.
fn in_child(what: &str, body: impl FnOnce() -> Result<()>) -> Result<()> {
    use nix::sys::wait::{WaitStatus, waitpid};
    use nix::unistd::{ForkResult, fork};
    // SAFETY: A stand-in forks while it has one thread.
    match unsafe { fork() }? {
        ForkResult::Child => {
            let result = body();
            if let Err(error) = &result {
                println!("in a child: {error:#}");
            }
            // SAFETY: Ends this process only, without what the parent has still to do.
            unsafe { libc::_exit(i32::from(result.is_err())) }
        }
        ForkResult::Parent { child } => {
            let status = waitpid(child, None)?;
            ensure!(
                matches!(status, WaitStatus::Exited(_, 0)),
                "{what}: the child ended with {status:?}"
            );
            Ok(())
        }
    }
}
