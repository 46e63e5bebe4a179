// SPDX-License-Identifier: GPL-2.0-only

//! Any call on `/dev/lguest`, in any order, from threads that come and go and from children, under
//! signals: chance decides, and a number says what chance does.
//!
//! Nobody can foretell what a call returns when another thread may close the file in the middle of
//! it. But each kind of call has a short list of what it may say, and everything else is an error.
//! All work is done by plain system calls and without an allocation, so that a child that was
//! forked from one of many threads may do it too.

use std::io::Write;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicI64, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail, ensure};
use libc::{c_int, c_void};
use nix::errno::Errno;
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};

use crate::device::{BREAK, GETDMA, IRQ};
use crate::random::Random;
use crate::tiny::{
    BOUND, BOUND_KEY, COUNT, DIE, END_AS, HALT, MIRROR, Memory, NAP, Program, RING, SPIN, SUM,
    TOUCH,
};

/// Places for open files, which all threads share.
const PLACES: usize = 12;
/// Threads at a time.
const THREADS: usize = 4;
/// Pieces of memory to lend, which all threads share as well.
const MEMORIES: usize = 6;
/// Pages of each.
const PAGES: usize = 64;
/// What a Guest may run.
const PROGRAMS: [Program; 11] = [
    COUNT, RING, SPIN, HALT, END_AS, DIE, TOUCH, MIRROR, BOUND, SUM, NAP,
];

/// A call, how often it comes up, what it may say beside that it was done, and how it is made.
struct Call {
    name: &'static str,
    often: u64,
    errors: &'static [c_int],
    body: fn(&World, &mut Chance) -> isize,
}

const fn call(
    name: &'static str,
    often: u64,
    errors: &'static [c_int],
    body: fn(&World, &mut Chance) -> isize,
) -> Call {
    Call {
        name,
        often,
        errors,
        body,
    }
}

/// What chance does for a thread, and which places are its own.
struct Chance {
    random: Random,
    thread: usize,
}

impl Chance {
    fn new(seed: u64, thread: usize) -> Self {
        let random = Random::new(seed);
        Self { random, thread }
    }

    fn word(&mut self) -> u64 {
        self.random.word()
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.random.below(limit)
    }

    /// A place for an open file: mostly one of its own, where its own Guests are.
    fn place(&mut self) -> usize {
        const OWN: usize = PLACES / THREADS;
        match self.below(4) {
            0 => self.below(PLACES as u64) as usize,
            _ => self.thread * OWN + self.below(OWN as u64) as usize,
        }
    }
}

/// `ERESTART`: the Guest wants to be started again.
const ERESTART: c_int = libc::ERESTART;

/// All of them. EBADF, that somebody has closed the file, may come at any time.
const CALLS: &[Call] = &[
    call("open", 8, &[], open),
    call(
        "INITIALIZE",
        14,
        &[libc::EPERM, libc::EBUSY, libc::EINTR],
        initialize,
    ),
    call("read", 30, READ_ERRORS, read),
    call("read of any length", 4, READ_ERRORS, read_any),
    call("IRQ", 6, &[libc::EINVAL], irq),
    call("BREAK", 3, &[libc::EINTR], break_on),
    call("BREAK off", 5, &[], break_off),
    call(
        "GETDMA",
        6,
        &[libc::EINVAL, libc::EPERM, libc::ENOENT],
        get_dma,
    ),
    call(
        "any words",
        5,
        &[
            libc::EINVAL,
            libc::EPERM,
            libc::EBUSY,
            libc::ENOENT,
            libc::EFAULT,
            libc::EINTR,
        ],
        any_words,
    ),
    call("dup", 5, &[], dup),
    call("poll", 5, &[libc::EINTR], poll),
    call("epoll", 2, &[libc::EPERM], epoll),
    call(
        "send over a socket",
        6,
        &[libc::EAGAIN, libc::ETOOMANYREFS, libc::EINTR],
        send,
    ),
    call(
        "receive from a socket",
        5,
        &[libc::EAGAIN, libc::EINTR],
        receive,
    ),
    call("fork", 1, &[], fork),
    call("close", 8, &[], close),
    call("other calls", 4, OTHER_ERRORS, others),
    call("memory goes", 3, &[], forget),
    call("signal to a thread", 3, &[], signal_one),
];

const READ_ERRORS: &[c_int] = &[
    libc::EINTR,
    libc::EINVAL,
    libc::EPERM,
    libc::EAGAIN,
    libc::ENOENT,
    libc::ESHUTDOWN,
    ERESTART,
    libc::EFAULT,
];

const OTHER_ERRORS: &[c_int] = &[
    libc::ENOTTY,
    libc::ENODEV,
    libc::ESPIPE,
    libc::EINVAL,
    libc::EPERM,
    libc::EAGAIN,
    libc::EINTR,
    libc::ENOENT,
    libc::ESHUTDOWN,
    libc::EFAULT,
    ERESTART,
];

/// The largest error number that is told apart.
const ERRORS: usize = 134;

/// What all threads share, and each child has a copy of.
struct World {
    files: [AtomicI32; PLACES],
    memories: Vec<Memory>,
    sockets: [c_int; 2],
    tasks: [AtomicI32; THREADS],
    left: AtomicI64,
    stop: AtomicBool,
    /// What each call has said how often; 0 is that it was done.
    said: Vec<[AtomicU64; ERRORS]>,
    /// The first call that said what it may not, plus 1, and what it said.
    wrong: [AtomicI32; 2],
}

/// What the last call of this thread says: its value, or less than 0 for an error's number.
fn said(value: isize) -> isize {
    if value < 0 {
        -(Errno::last_raw() as isize)
    } else {
        value
    }
}

impl World {
    fn new() -> Result<Self> {
        let mut sockets = [0; 2];
        let kind = libc::SOCK_DGRAM | libc::SOCK_NONBLOCK;
        // SAFETY: The array has room for two descriptors.
        let made = unsafe { libc::socketpair(libc::AF_UNIX, kind, 0, sockets.as_mut_ptr()) };
        ensure!(made == 0, "socketpair(): {}", Errno::last());
        let zero = || -> [AtomicU64; ERRORS] { std::array::from_fn(|_| AtomicU64::new(0)) };
        Ok(Self {
            files: std::array::from_fn(|_| AtomicI32::new(-1)),
            memories: (0..MEMORIES)
                .map(|_| Memory::new(PAGES))
                .collect::<Result<_>>()?,
            sockets,
            tasks: std::array::from_fn(|_| AtomicI32::new(0)),
            left: AtomicI64::new(0),
            stop: AtomicBool::new(false),
            said: CALLS.iter().map(|_| zero()).collect(),
            wrong: Default::default(),
        })
    }

    /// One of the open files, or of the places for one.
    fn file(&self, random: &mut Chance) -> c_int {
        let mut file = -1;
        // Mostly one that is there.
        for _ in 0..4 {
            file = self.files[random.place()].load(Ordering::Relaxed);
            if file >= 0 {
                break;
            }
        }
        file
    }

    /// Keeps a descriptor, and closes the one that was in its place.
    fn keep(&self, random: &mut Chance, file: isize) -> isize {
        if file >= 0 {
            let place = &self.files[random.place()];
            let before = place.swap(file as c_int, Ordering::Relaxed);
            if before >= 0 {
                // SAFETY: Whoever still uses it finds that it is closed.
                unsafe { libc::close(before) };
            }
        }
        file
    }

    /// Makes so many calls, or until nothing is left to be done.
    fn go(&self, random: &mut Chance, calls: u64) {
        let all: u64 = CALLS.iter().map(|call| call.often).sum();
        for _ in 0..calls {
            if self.left.fetch_sub(1, Ordering::Relaxed) <= 0 || self.stop.load(Ordering::Relaxed) {
                return;
            }
            let mut which = random.below(all);
            for (n, call) in CALLS.iter().enumerate() {
                if which >= call.often {
                    which -= call.often;
                    continue;
                }
                let answer = (call.body)(self, random);
                let number = answer.min(0).unsigned_abs();
                self.said[n][number.min(ERRORS - 1)].fetch_add(1, Ordering::Relaxed);
                let error = number as c_int;
                if error != 0 && error != libc::EBADF && !call.errors.contains(&error) {
                    self.wrong[0].store(n as i32 + 1, Ordering::Relaxed);
                    self.wrong[1].store(error, Ordering::Relaxed);
                    self.stop.store(true, Ordering::Relaxed);
                }
                break;
            }
        }
    }
}

fn open(world: &World, random: &mut Chance) -> isize {
    // SAFETY: The name is a C string.
    let file = unsafe { libc::open(c"/dev/lguest".as_ptr(), libc::O_RDWR | libc::O_CLOEXEC) };
    let file = said(file as isize);
    world.keep(random, file)
}

/// Writes words; gives what `write()` says.
fn write(file: c_int, words: &[u64]) -> isize {
    // SAFETY: The words are there.
    said(unsafe { libc::write(file, words.as_ptr().cast(), size_of_val(words)) })
}

fn initialize(world: &World, random: &mut Chance) -> isize {
    let memory = &world.memories[random.below(MEMORIES as u64) as usize];
    let program = PROGRAMS[random.below(PROGRAMS.len() as u64) as usize];
    let words = memory.load(program);
    // How END_AS ends; else how far TOUCH goes.
    if random.below(3) != 0 {
        memory.set_word(0, random.below(4));
    }
    write(world.file(random), &words)
}

/// A buffer, on the stack.
fn read_into(file: c_int, buffer: &mut [u8]) -> isize {
    // SAFETY: The buffer is there.
    said(unsafe { libc::read(file, buffer.as_mut_ptr().cast(), buffer.len()) })
}

fn read(world: &World, random: &mut Chance) -> isize {
    let file = world.file(random);
    let mut last = -(libc::EBADF as isize);
    for _ in 0..1 + random.below(20) {
        last = read_into(file, &mut [0; 256]);
        if last < 0 {
            break;
        }
    }
    last
}

fn read_any(world: &World, random: &mut Chance) -> isize {
    let file = world.file(random);
    let length = random.below(64) as usize;
    if random.below(3) != 0 {
        return read_into(file, &mut [0; 64][..length]);
    }
    // SAFETY: Nothing is mapped there, so nothing can be written.
    said(unsafe { libc::read(file, std::ptr::without_provenance_mut(8), length) })
}

fn irq(world: &World, random: &mut Chance) -> isize {
    write(world.file(random), &[IRQ, random.below(66)])
}

fn break_on(world: &World, random: &mut Chance) -> isize {
    write(world.file(random), &[BREAK, 1])
}

fn break_off(world: &World, random: &mut Chance) -> isize {
    write(world.file(random), &[BREAK, 0])
}

fn get_dma(world: &World, random: &mut Chance) -> isize {
    let key = BOUND_KEY + random.below(2);
    // A record's address is no error, and what it is does not matter here.
    write(world.file(random), &[GETDMA, key]).min(1)
}

fn any_words(world: &World, random: &mut Chance) -> isize {
    let file = world.file(random);
    let mut words = [0; 8];
    for word in &mut words {
        *word = random.word() >> random.below(64);
    }
    words[0] = random.below(5);
    let bytes = random.below(65) as usize;
    let at = if random.below(8) == 0 {
        std::ptr::without_provenance(8)
    } else {
        words.as_ptr().cast::<c_void>()
    };
    // SAFETY: There are so many bytes, or nothing at all is mapped there.
    said(unsafe { libc::write(file, at, bytes) }).min(1)
}

fn dup(world: &World, random: &mut Chance) -> isize {
    let file = world.file(random);
    // SAFETY: Only numbers.
    let file = said(unsafe { libc::dup(file) } as isize);
    world.keep(random, file)
}

fn poll(world: &World, random: &mut Chance) -> isize {
    let mut files = [(); 3].map(|()| libc::pollfd {
        fd: world.file(random),
        events: libc::POLLIN | libc::POLLOUT,
        revents: 0,
    });
    // SAFETY: The array has three.
    said(unsafe { libc::poll(files.as_mut_ptr(), 3, random.below(2) as c_int) } as isize)
}

fn epoll(world: &World, random: &mut Chance) -> isize {
    // SAFETY: Only numbers, and a structure that is there.
    unsafe {
        let set = libc::epoll_create1(libc::EPOLL_CLOEXEC);
        let mut event = libc::epoll_event {
            events: libc::EPOLLIN as u32,
            u64: 0,
        };
        let file = world.file(random);
        let answer = said(libc::epoll_ctl(set, libc::EPOLL_CTL_ADD, file, &mut event) as isize);
        libc::close(set);
        answer
    }
}

/// Room for a message with one descriptor, aligned as it must be.
#[repr(align(8))]
struct Letter([u8; 64]);

/// A message of one byte, and its head, which live as long as the call `body`.
fn with_letter(body: impl FnOnce(&mut libc::msghdr) -> isize) -> isize {
    let mut byte = [b'x'];
    let mut piece = libc::iovec {
        iov_base: byte.as_mut_ptr().cast(),
        iov_len: 1,
    };
    let mut letter = Letter([0; 64]);
    // SAFETY: A head of zeroes is one.
    let mut head: libc::msghdr = unsafe { std::mem::zeroed() };
    head.msg_iov = &mut piece;
    head.msg_iovlen = 1;
    head.msg_control = letter.0.as_mut_ptr().cast();
    // SAFETY: Only numbers.
    head.msg_controllen = unsafe { libc::CMSG_SPACE(4) } as usize;
    body(&mut head)
}

fn send(world: &World, random: &mut Chance) -> isize {
    let file = world.file(random);
    let socket = world.sockets[random.below(2) as usize];
    with_letter(|head| {
        // SAFETY: The head and all that it leads to is there, with room for one descriptor.
        unsafe {
            let letter = libc::CMSG_FIRSTHDR(head);
            (*letter).cmsg_level = libc::SOL_SOCKET;
            (*letter).cmsg_type = libc::SCM_RIGHTS;
            (*letter).cmsg_len = libc::CMSG_LEN(4) as usize;
            libc::CMSG_DATA(letter).cast::<c_int>().write(file);
            said(libc::sendmsg(socket, head, 0))
        }
    })
}

fn receive(world: &World, random: &mut Chance) -> isize {
    let socket = world.sockets[random.below(2) as usize];
    let mut file = -1;
    let answer = with_letter(|head| {
        // SAFETY: As above.
        unsafe {
            let answer = said(libc::recvmsg(socket, head, libc::MSG_CMSG_CLOEXEC));
            let letter = libc::CMSG_FIRSTHDR(head);
            if answer >= 0 && !letter.is_null() && (*letter).cmsg_type == libc::SCM_RIGHTS {
                file = libc::CMSG_DATA(letter).cast::<c_int>().read();
            }
            answer
        }
    });
    world.keep(random, file as isize);
    answer
}

/// A child that has all that is open, and a copy of the memory, and goes on by itself.
fn fork(world: &World, random: &mut Chance) -> isize {
    let (seed, kill, thread) = (random.word(), random.below(3) == 0, random.thread);
    // SAFETY: The child only makes system calls and ends.
    let child = unsafe { libc::fork() };
    if child == 0 {
        let every = libc::timeval {
            tv_sec: 0,
            tv_usec: 2000,
        };
        let timer = libc::itimerval {
            it_interval: every,
            it_value: every,
        };
        let mut random = Chance::new(seed, thread);
        world.left.store(30, Ordering::Relaxed);
        // SAFETY: The structure is there. Nobody else will get the child out of a Guest that
        // sleeps, so an alarm does.
        unsafe { libc::setitimer(libc::ITIMER_REAL, &timer, std::ptr::null_mut()) };
        world.go(&mut random, 30);
        let wrong = world.wrong[0].load(Ordering::Relaxed);
        // SAFETY: Ends the child alone.
        unsafe { libc::_exit(wrong) }
    }
    if child < 0 {
        return said(-1);
    }
    let mut status = 0;
    // SAFETY: The child is ours, and not waited for yet; the number has a place.
    unsafe {
        if kill {
            libc::sched_yield();
            libc::kill(child, libc::SIGKILL);
        }
        while libc::waitpid(child, &mut status, 0) < 0 && Errno::last_raw() == libc::EINTR {}
    }
    let (exited, code) = (libc::WIFEXITED(status), libc::WEXITSTATUS(status));
    if exited && code != 0 {
        // The child says which call; what it said is in its own copy.
        world.wrong[0].store(code, Ordering::Relaxed);
        world.stop.store(true, Ordering::Relaxed);
    }
    0
}

fn close(world: &World, random: &mut Chance) -> isize {
    let place = &world.files[random.place()];
    let file = place.swap(-1, Ordering::Relaxed);
    // SAFETY: Whoever still uses it finds that it is closed.
    said(unsafe { libc::close(file) } as isize)
}

fn others(world: &World, random: &mut Chance) -> isize {
    let file = world.file(random);
    let mut word = [0_u64; 4];
    let one = libc::iovec {
        iov_base: word.as_mut_ptr().cast(),
        iov_len: 32,
    };
    // SAFETY: What is read or written is the four words; a mapping that comes about is left alone,
    // and none does.
    unsafe {
        let answer = match random.below(8) {
            0 => libc::lseek(file, 8, libc::SEEK_SET) as isize,
            1 => libc::ioctl(file, 0x5401, word.as_mut_ptr()) as isize,
            2 => libc::fcntl(file, libc::F_SETFL, libc::O_NONBLOCK | libc::O_APPEND) as isize,
            3 => libc::fsync(file) as isize,
            4 => libc::readv(file, &one, 1),
            5 => libc::writev(file, &one, 1),
            6 => libc::pread(file, word.as_mut_ptr().cast(), 32, 16),
            _ => {
                let none = std::ptr::null_mut();
                let at = libc::mmap(none, 4096, libc::PROT_READ, libc::MAP_SHARED, file, 0);
                if at == libc::MAP_FAILED { -1 } else { 0 }
            }
        };
        said(answer).min(1)
    }
}

/// A page of a Guest's memory is forgotten: whoever looks next finds a new one.
fn forget(world: &World, random: &mut Chance) -> isize {
    let memory = &world.memories[random.below(MEMORIES as u64) as usize];
    let page = memory.address() + random.below(PAGES as u64) as usize * 4096;
    let page = std::ptr::with_exposed_provenance_mut::<c_void>(page);
    // SAFETY: The page is the Guests', and this program keeps nothing of its own in it.
    said(unsafe { libc::madvise(page, 4096, libc::MADV_DONTNEED) } as isize)
}

fn signal_one(world: &World, random: &mut Chance) -> isize {
    let task = world.tasks[random.below(THREADS as u64) as usize].load(Ordering::Relaxed);
    let signal = [libc::SIGUSR1, libc::SIGUSR2][random.below(2) as usize];
    if task != 0 {
        // SAFETY: Only numbers; a thread that has ended gets nothing.
        unsafe { libc::syscall(libc::SYS_tgkill, libc::getpid(), task, signal) };
    }
    0
}

extern "C" fn nothing(_: c_int) {}

/// Words: the seed, and how many calls.
pub fn device(words: &[String]) -> Result<()> {
    let [seed, calls] = words else {
        bail!("which seed, and how many calls?");
    };
    let (seed, calls): (u64, i64) = (seed.parse()?, calls.parse()?);
    for (signal, flags) in [
        (Signal::SIGUSR1, SaFlags::empty()),
        (Signal::SIGUSR2, SaFlags::SA_RESTART),
        (Signal::SIGALRM, SaFlags::empty()),
    ] {
        let action = SigAction::new(SigHandler::Handler(nothing), flags, SigSet::empty());
        // SAFETY: The handler does nothing.
        unsafe { sigaction(signal, &action) }?;
    }
    let world = World::new()?;
    world.left.store(calls, Ordering::Relaxed);
    println!("begun");
    let mut random = Chance::new(seed, 0);
    thread::scope(|scope| -> Result<()> {
        let threads: Vec<_> = (0..THREADS)
            .map(|n| {
                let (world, mut random) = (&world, Chance::new(random.word(), n));
                scope.spawn(move || lives(world, &mut random))
            })
            .collect();
        while threads.iter().any(|thread| !thread.is_finished()) {
            signal_one(&world, &mut random);
            thread::sleep(Duration::from_micros(random.below(1500)));
        }
        for thread in threads {
            thread.join().map_err(|_| anyhow!("a thread panicked"))??;
        }
        Ok(())
    })?;
    let [wrong, error] = world.wrong.each_ref().map(|w| w.load(Ordering::Relaxed));
    if let Some(call) = usize::try_from(wrong - 1).ok().and_then(|n| CALLS.get(n)) {
        let error = match error {
            0 => "what it may not, in a child".to_owned(),
            error => Errno::from_raw(error).to_string(),
        };
        bail!("seed={seed}: {} said: {error}", call.name);
    }
    tell(&world)
}

/// One thread after another, each with some calls.
fn lives(world: &World, random: &mut Chance) -> Result<()> {
    while world.left.load(Ordering::Relaxed) > 0 && !world.stop.load(Ordering::Relaxed) {
        let n = random.thread;
        let (calls, mut random) = (20 + random.below(200), Chance::new(random.word(), n));
        let life = move || {
            // SAFETY: Gives a number.
            world.tasks[n].store(unsafe { libc::gettid() }, Ordering::Relaxed);
            world.go(&mut random, calls);
            world.tasks[n].store(0, Ordering::Relaxed);
        };
        thread::scope(|scope| scope.spawn(life).join()).map_err(|_| anyhow!("a life panicked"))?;
    }
    Ok(())
}

/// Says what was said.
fn tell(world: &World) -> Result<()> {
    let mut out = std::io::stdout().lock();
    for (call, said) in CALLS.iter().zip(&world.said) {
        write!(out, "said: {}:", call.name)?;
        for (error, count) in said.iter().enumerate() {
            let count = count.load(Ordering::Relaxed);
            match error {
                _ if count == 0 => {}
                0 => write!(out, " done {count}")?,
                error => write!(out, " {:?} {count}", Errno::from_raw(error as c_int))?,
            }
        }
        writeln!(out)?;
    }
    out.flush().context("nobody listens")
}
