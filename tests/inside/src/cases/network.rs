// SPDX-License-Identifier: GPL-2.0-only

//! The network: Guests that share one, Guests behind a tap or at a bridge, and one that means no
//! good.
//!
//! The Guest is `wire`, which consists of the book's driver and sockets.

use std::fs;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::Signal;

use super::guests::OFF;
use super::{Bench, NotHere};
use crate::guest::{Ended, Guest};
use crate::host;

/// The file of the network.
const FILE: &str = "/tmp/network";
/// The option that names it.
const SHARED: &str = "--sharenet=/tmp/network";

/// Starts the Guest with an option and words for its command line.
fn wire(option: &str, words: &[&str]) -> Result<Guest> {
    Guest::launch(&[&[option, "16", "/guests/wire"], words].concat())
}

/// A network in which nobody was before.
fn new_network() -> Result<()> {
    host::load_module()?;
    if Path::new(FILE).exists() {
        fs::remove_file(FILE)?;
    }
    Ok(())
}

/// Guests that talk, each with some words, from the lowest slot on. They begin when all are there.
fn talk(words: &[&[&str]]) -> Result<Vec<Guest>> {
    let mut guests = Vec::new();
    for (slot, words) in words.iter().enumerate() {
        let guest = wire(SHARED, &[&["case=talk"], *words].concat())?;
        guest.wait_for(&format!("slot {slot}"))?;
        guests.push(guest);
    }
    for guest in &mut guests {
        guest.send(b"g")?;
    }
    Ok(guests)
}

/// A number that a Guest has printed as `name=number`.
fn number(ended: &Ended, name: &str) -> Result<u64> {
    let line = ended.output.lines().find(|line| line.starts_with("good:"));
    let line = line.with_context(|| format!("no good line: {}", ended.said()))?;
    let mut words = line.split_whitespace();
    let found = words.find_map(|word| word.strip_prefix(name)?.strip_prefix('='));
    let found = found.with_context(|| format!("no {name}= in {line:?}"))?;
    Ok(found.parse()?)
}

/// Waits for their ends, which must all be good.
fn all_good(guests: Vec<Guest>) -> Result<Vec<Ended>> {
    let mut all = Vec::new();
    for guest in guests {
        let ended = guest.finish()?;
        ended.expect_code(OFF)?.expect_output("good:")?;
        all.push(ended);
    }
    Ok(all)
}

/// One of the numbers that the module counts.
fn counted(name: &str) -> Result<u64> {
    let all = host::counters()?;
    let found = all.get(name);
    Ok(*found.with_context(|| format!("no counter {name}"))?)
}

/// Two Guests, thousands of frames each way. None is lost, and the Host has refused exactly those
/// that the senders were told of.
pub fn frames(bench: &mut Bench) -> Result<()> {
    new_network()?;
    let packets = bench.number("packets").unwrap_or(10_000);
    let before = (counted("dma_copied")?, counted("dma_refused")?);
    let start = Instant::now();
    let packets_word = format!("packets={packets}");
    let words = |peer| [packets_word.as_str(), peer];
    let ended = all_good(talk(&[&words("peers=1"), &words("peers=0")])?)?;
    let (mut refused, mut turns) = (0, 0);
    for one in &ended {
        ensure!(number(one, "got")? == packets, "{}", one.said());
        ensure!(number(one, "taken")? == packets, "{}", one.said());
        ensure!(number(one, "dropped")? == 0, "{}", one.said());
        ensure!(number(one, "foreign")? == 0, "{}", one.said());
        refused += number(one, "refused")?;
        turns += number(one, "turns")?;
    }
    let copied = counted("dma_copied")? - before.0;
    let told = counted("dma_refused")? - before.1;
    ensure!(copied == 2 * packets, "{copied} frames were copied");
    ensure!(told == refused, "{told} refused, {refused} known of");
    bench.control.say(
        "note",
        &format!(
            "{packets} frames each way in {} ms; {refused} times no room, {turns} turns",
            start.elapsed().as_millis()
        ),
    )?;
    host::wait_until_free()
}

/// A receiver that is slow, and one that is deaf. The sender is told, tries again at its leisure, and
/// what is in the receiver's records stays there.
pub fn back_pressure(bench: &mut Bench) -> Result<()> {
    new_network()?;
    let packets = 300;
    let slow = ["packets=300", "peers=0", "pause=2000000"];
    let ended = all_good(talk(&[&["packets=300", "peers=1"], &slow])?)?;
    let (got, dropped) = (number(&ended[1], "got")?, number(&ended[0], "dropped")?);
    ensure!(got == packets && dropped == 0, "{}", ended[0].said());
    let (refused, us) = (number(&ended[0], "refused")?, number(&ended[0], "us")?);
    ensure!(us > 500_000, "300 frames of 2 ms each took {us} us");
    // Not told would be 0; told, and not pausing in between, would be many thousands.
    ensure!(refused >= packets / 2, "refused {refused} times only");
    ensure!(refused <= 20 * packets, "refused {refused} times");
    let slow = format!("slow: {refused} times no room in {} ms", us / 1000);

    // Deaf for six seconds. The sender's patience ends after two; eight frames are in the
    // records, and those that follow are dropped by the sender.
    let deaf = ["peers=0", "for=8000", "deaf=6000"];
    let loud = ["packets=100", "peers=1", "for=4000"];
    let ended = all_good(talk(&[&loud, &deaf])?)?;
    let (taken, dropped) = (number(&ended[0], "taken")?, number(&ended[0], "dropped")?);
    ensure!((taken, dropped) == (8, 92), "{}", ended[0].said());
    let got = number(&ended[1], "got")?;
    ensure!(got == 8, "the first eight, not {got}: {}", ended[1].said());
    let refused = number(&ended[0], "refused")?;
    ensure!((100..1000).contains(&refused), "refused {refused} times");
    let turns = number(&ended[0], "turns")?;
    ensure!(turns < 5000, "{turns} turns in 4 seconds");
    let deaf = format!("deaf: 8 taken, {refused} times no room, 92 dropped, {turns} turns");
    bench.control.say("note", &format!("{slow}; {deaf}"))?;
    host::wait_until_free()
}

/// Three Guests, each of which talks to both others.
pub fn three(_: &mut Bench) -> Result<()> {
    new_network()?;
    let words = ["peers=1,2", "peers=0,2", "peers=0,1"].map(|peers| ["packets=500", peers]);
    let guests = talk(&[&words[0], &words[1], &words[2]])?;
    for one in all_good(guests)? {
        ensure!(number(&one, "got")? == 1000, "{}", one.said());
        ensure!(number(&one, "dropped")? == 0, "{}", one.said());
    }
    host::wait_until_free()
}

/// Slots are given out from the lowest, and one is free again when its Guest was killed, its MAC
/// with it; and files that are no network are refused.
pub fn slots(_: &mut Bench) -> Result<()> {
    new_network()?;
    let mac = |slot: usize| -> Result<Vec<u8>> {
        let page = fs::read(FILE)?;
        ensure!(page.len() == 4096, "{} bytes", page.len());
        Ok(page[6 * slot..][..6].to_vec())
    };
    let waiting = |slot: usize| -> Result<Guest> {
        // It waits for a key.
        let guest = wire(SHARED, &["case=talk", "peers=63"])?;
        guest.wait_for(&format!("slot {slot}"))?;
        ensure!(mac(slot)? == [2, 0, 0, 0, 0, slot as u8 + 1]);
        Ok(guest)
    };
    let (first, second, third) = (waiting(0)?, waiting(1)?, waiting(2)?);
    second.signal(Signal::SIGKILL)?;
    second.finish()?.expect_code(128 + Signal::SIGKILL as i32)?;
    // Its life ends a moment after its parent.
    let end = Instant::now() + Duration::from_secs(20) * host::patience();
    while counted("guests")? > 2 {
        ensure!(Instant::now() < end, "the life of a killed parent goes on");
        thread::sleep(Duration::from_millis(10));
    }
    let second = waiting(1)?;
    let fourth = waiting(3)?;
    for guest in [first, second, third, fourth] {
        guest.signal(Signal::SIGTERM)?;
        guest.finish()?.expect_code(128 + Signal::SIGTERM as i32)?;
    }
    drop(waiting(0)?);
    for (text, path) in [("a letter", "/tmp/letter"), ("", "/tmp/empty")] {
        fs::write(path, text)?;
    }
    let refused = [
        ("--sharenet=/tmp/letter", "not a network's file"),
        ("--sharenet=/tmp", "/tmp"),
        ("--sharenet=/nowhere/network", "no such file"),
        ("--sharenet=/dev/zero", "not a network's file"),
    ];
    for (option, words) in refused {
        wire(option, &[])?
            .finish()?
            .expect_code(2)?
            .expect_error(words)?;
    }
    ensure!(fs::read("/tmp/letter")? == b"a letter", "it was written to");
    fs::remove_file("/tmp/letter")?;
    fs::remove_file("/tmp/empty")?;
    host::wait_until_free()
}

/// Two Guests talk while a third writes over all MACs, listens to all keys and sends nonsense. They
/// may lose frames, but not their lives, and when it is gone all is well again.
pub fn scribbler(bench: &mut Bench) -> Result<()> {
    new_network()?;
    let words = |peer| ["packets=100000000", "for=6000", peer];
    let pair = talk(&[&words("peers=1"), &words("peers=0")])?;
    let third = wire(SHARED, &["case=scribble"])?;
    third.wait_for("scribbling")?;
    thread::sleep(Duration::from_secs(2));
    third.signal(Signal::SIGKILL)?;
    third.finish()?.expect_code(128 + Signal::SIGKILL as i32)?;
    let (mut got, mut foreign) = (Vec::new(), Vec::new());
    for one in all_good(pair)? {
        got.push(number(&one, "got")?);
        foreign.push(number(&one, "foreign")?);
        // In the last quarter, when it was gone.
        ensure!(number(&one, "late")? > 0, "{}", one.said());
    }
    ensure!(foreign.iter().any(|n| *n > 0), "no nonsense arrived at all");
    let note = format!("last frames {got:?}, nonsense {foreign:?}");
    bench.control.say("note", &note)?;
    // And the network is as good as new.
    let words = |peer| ["packets=200", peer];
    for one in all_good(talk(&[&words("peers=1"), &words("peers=0")])?)? {
        ensure!(number(&one, "got")? == 200, "{}", one.said());
    }
    host::wait_until_free()
}

/// UDP between two Guests, over sockets: as many packets each way, none lost, though one of the two
/// reads slowly.
pub fn udp(bench: &mut Bench) -> Result<()> {
    new_network()?;
    let packets = bench.number("packets").unwrap_or(10_000);
    let start = Instant::now();
    let packets_word = format!("packets={packets}");
    let words = ["case=udp", &packets_word];
    let first = wire(SHARED, &[&words[..], &["to=10.0.0.2"]].concat())?;
    let second = wire(SHARED, &[&words[..], &["to=10.0.0.1"]].concat())?;
    let mut notes = Vec::new();
    for one in all_good(vec![first, second])? {
        ensure!(number(&one, "dropped")? == 0, "{}", one.said());
        notes.push(number(&one, "sent")?);
    }
    let note = format!(
        "{packets} packets each way in {} ms, {notes:?} frames",
        start.elapsed().as_millis()
    );
    bench.control.say("note", &note)?;
    let words = [
        "case=udp",
        "packets=200",
        "ip=192.168.7.1/24",
        "to=192.168.7.2",
    ];
    let first = wire(SHARED, &words)?;
    let words = [
        "case=udp",
        "packets=200",
        "ip=192.168.7.2/24",
        "to=192.168.7.1",
    ];
    let second = wire(SHARED, &[&words[..], &["pause=2000000"]].concat())?;
    for one in all_good(vec![first, second])? {
        ensure!(number(&one, "dropped")? == 0, "{}", one.said());
    }
    host::wait_until_free()
}

/// Two Guests with a shell each: one counts packets, the other pings it and sends them; and one
/// pings the Host over its tap.
pub fn programs(_: &mut Bench) -> Result<()> {
    new_network()?;
    let disk = "--initrd=/guests/initrd.cpio";
    if !Path::new("/guests/initrd.cpio").exists() {
        return Err(
            NotHere("the Guest's programs are not packed: `make initrd`".to_owned()).into(),
        );
    }
    let shell = |option: &str, words: &[&str]| -> Result<Guest> {
        let guest = [option, disk, "32", "/guests/guest", "quiet"];
        let guest = Guest::launch(&[&guest[..], words].concat())?;
        guest.wait_for("$ ")?;
        Ok(guest)
    };
    let mut first = shell(SHARED, &[])?;
    let mut second = shell(SHARED, &["ip=10.0.0.9/24"])?;
    first.send(b"udp receive 7 200\n")?;
    second.send(b"ping 10.0.0.1 3 1000\n")?;
    second.wait_for("3 of 3 answered")?;
    second.send(b"ping 10.0.0.7 1; udp send 10.0.0.1:7 200\n")?;
    second.wait_for("1 went unanswered")?;
    second.wait_for("200 sent")?;
    first.wait_for("200 received, 0 lost, 0 mangled")?;
    let mut third = shell("--tunnet=192.168.19.1", &[])?;
    third.send(b"ping 192.168.19.1 2; ping 192.168.19.2 1; ping 8.8.8.8 1\n")?;
    third.wait_for("2 of 2 answered")?;
    third.wait_for("1 of 1 answered")?;
    for mut guest in [first, second, third] {
        guest.send(b"halt\n")?;
        guest.finish()?.expect_code(OFF)?;
    }
    host::wait_until_free()
}

/// A socket for ICMP, as ping has one.
fn icmp() -> Result<OwnedFd> {
    // SAFETY: The call takes three numbers.
    let socket = unsafe { libc::socket(libc::AF_INET, libc::SOCK_RAW, libc::IPPROTO_ICMP) };
    ensure!(socket >= 0, "no ICMP: {}", io::Error::last_os_error());
    // SAFETY: It was opened just now, and nobody else has it.
    let socket = unsafe { OwnedFd::from_raw_fd(socket) };
    let wait = libc::timeval {
        tv_sec: 1,
        tv_usec: 0,
    };
    // SAFETY: The pointer is that of a value of this size.
    let done = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_RCVTIMEO,
            (&raw const wait).cast(),
            size_of_val(&wait) as u32,
        )
    };
    ensure!(done == 0, "no time limit: {}", io::Error::last_os_error());
    Ok(socket)
}

/// The checksum of the Internet.
fn checksum(bytes: &[u8]) -> u16 {
    let words = bytes
        .chunks(2)
        .map(|two| u32::from(two[0]) << 8 | two.get(1).copied().map_or(0, u32::from));
    let sum: u32 = words.sum();
    let sum = (sum & 0xffff) + (sum >> 16);
    !((sum & 0xffff) + (sum >> 16)) as u16
}

/// Sends one echo request of `length` bytes of data, and waits for the answer; whether it came.
fn ping(socket: &OwnedFd, address: [u8; 4], number: u16, length: usize) -> Result<bool> {
    let mut request = vec![8, 0, 0, 0, 0x12, 0x34];
    request.extend(number.to_be_bytes());
    request.extend((0..length).map(|n| (n * 7 + usize::from(number)) as u8));
    let sum = checksum(&request);
    request[2..4].copy_from_slice(&sum.to_be_bytes());
    let to = libc::sockaddr_in {
        sin_family: libc::AF_INET as u16,
        sin_port: 0,
        sin_addr: libc::in_addr {
            s_addr: u32::from_ne_bytes(address),
        },
        sin_zero: [0; 8],
    };
    // SAFETY: Both pointers are those of values of the sizes given.
    let sent = unsafe {
        libc::sendto(
            socket.as_raw_fd(),
            request.as_ptr().cast(),
            request.len(),
            0,
            (&raw const to).cast(),
            size_of_val(&to) as u32,
        )
    };
    ensure!(
        sent == request.len() as isize,
        "not sent: {}",
        io::Error::last_os_error()
    );
    let mut answer = vec![0; 2048];
    loop {
        // SAFETY: The buffer has this size.
        let got = unsafe {
            libc::recv(
                socket.as_raw_fd(),
                answer.as_mut_ptr().cast(),
                answer.len(),
                0,
            )
        };
        if got < 0 {
            return match io::Error::last_os_error().kind() {
                io::ErrorKind::WouldBlock => Ok(false),
                io::ErrorKind::Interrupted => continue,
                error => bail!("no answer: {error}"),
            };
        }
        let header = usize::from(answer[0] & 15) * 4;
        let packet = &answer[header..got as usize];
        // Requests that our own Linux answers itself come by as well.
        if packet.len() < 8 || packet[0] != 0 || packet[4..8] != request[4..8] {
            continue;
        }
        ensure!(answer[12..16] == address, "an answer of somebody else");
        ensure!(packet[8..] == request[8..], "echo {number} is mangled");
        ensure!(checksum(packet) == 0, "echo {number} has a wrong sum");
        return Ok(true);
    }
}

/// The Host pings a Guest behind a tap, and the Guest pings the Host.
pub fn tap(bench: &mut Bench) -> Result<()> {
    host::load_module()?;
    let mut guest = wire("--tunnet=192.168.19.1", &["case=answer"])?;
    guest.wait_for("ready")?;
    ensure!(Path::new("/sys/class/net/tap0").exists(), "no tap0");
    let socket = icmp()?;
    let address = [192, 168, 19, 2];
    let end = Instant::now() + Duration::from_secs(20) * host::patience();
    while !ping(&socket, address, 0, 8)? {
        ensure!(Instant::now() < end, "the Guest does not answer");
    }
    let (start, mut lost) = (Instant::now(), 0);
    for number in 1..=100 {
        let length = usize::from(number) * 15 % 1473;
        lost += u32::from(!ping(&socket, address, number, length)?);
    }
    ensure!(lost == 0, "{lost} of 100 echoes did not come back");
    let took = start.elapsed().as_micros() / 100;
    // Nobody is there.
    ensure!(!ping(&socket, [192, 168, 19, 3], 200, 8)?);
    guest.send(b"q")?;
    let ended = guest.finish()?;
    ended
        .expect_code(OFF)?
        .expect_output("good: ended by 113")?;
    let end = Instant::now() + Duration::from_secs(20);
    while Path::new("/sys/class/net/tap0").exists() {
        ensure!(Instant::now() < end, "tap0 outlives its Launcher");
        thread::sleep(Duration::from_millis(10));
    }
    let ping = ["case=ping", "to=192.168.19.1", "packets=100"];
    wire("--tunnet=192.168.19.1/30:02:0:0:0:0:77", &ping)?
        .finish()?
        .expect_code(OFF)?
        .expect_output("good: 100 echoes")?;
    bench
        .control
        .say("note", &format!("an echo takes {took} us"))?;
    host::wait_until_free()
}

/// Two Guests on taps that are ports of a bridge: the Host pings the first, and the second pings
/// both. Afterwards the bridge has no port.
pub fn bridge(_: &mut Bench) -> Result<()> {
    host::load_module()?;
    busybox("brctl addbr br0")?;
    busybox("ifconfig br0 192.168.20.1 up")?;
    let with_mac = "--tunnet=bridge:br0:02:0:0:0:0:7";
    let mut first = wire(with_mac, &["case=answer", "ip=192.168.20.2/24"])?;
    first.wait_for("ready")?;
    let ports = || Ok::<_, io::Error>(fs::read_dir("/sys/class/net/br0/brif")?.count());
    ensure!(ports()? == 1, "{} ports of one Guest", ports()?);
    let socket = icmp()?;
    let address = [192, 168, 20, 2];
    let end = Instant::now() + Duration::from_secs(20) * host::patience();
    while !ping(&socket, address, 0, 8)? {
        ensure!(Instant::now() < end, "the Guest does not answer");
    }
    let neighbours = fs::read_to_string("/proc/net/arp")?;
    let mut lines = neighbours.lines();
    let line = lines.find(|line| line.starts_with("192.168.20.2 "));
    ensure!(
        line.is_some_and(|line| line.contains("02:00:00:00:00:07") && line.ends_with("br0")),
        "the Guest has another MAC:\n{neighbours}"
    );
    for to in ["to=192.168.20.2", "to=192.168.20.1"] {
        let words = ["case=ping", "ip=192.168.20.3/24", "packets=100", to];
        let second = wire("--tunnet=bridge:br0", &words)?.finish()?;
        second.expect_code(OFF)?.expect_output("good: 100 echoes")?;
    }
    first.send(b"q")?;
    first
        .finish()?
        .expect_code(OFF)?
        .expect_output("good: ended by 113")?;
    let end = Instant::now() + Duration::from_secs(20);
    while ports()? != 0 {
        ensure!(Instant::now() < end, "a port outlives its Launcher");
        thread::sleep(Duration::from_millis(10));
    }
    busybox("ifconfig br0 down")?;
    busybox("brctl delbr br0")?;
    host::wait_until_free()
}

/// Runs one of the Host's commands.
fn busybox(line: &str) -> Result<()> {
    let status = Command::new("/bin/busybox")
        .args(line.split_whitespace())
        .status()?;
    ensure!(status.success(), "`{line}` failed: {status}");
    Ok(())
}

/// A Guest starts its card without room for a binding, and then over and over.
pub fn cards(_: &mut Bench) -> Result<()> {
    for option in [SHARED, "--tunnet=192.168.19.1"] {
        new_network()?;
        let ended = wire(option, &["case=cards"])?.finish()?;
        ended.expect_code(OFF)?;
        ensure!(number(&ended, "rounds")? == 64, "{}", ended.said());
    }
    host::wait_until_free()
}

/// What cannot be: a bridge that is none, and options that make no sense.
pub fn refused(_: &mut Bench) -> Result<()> {
    host::load_module()?;
    for (option, words) in [
        (
            "--tunnet=bridge:br7",
            "there is no interface `br7`; make a bridge of that name: ip link add br7 type bridge",
        ),
        (
            "--tunnet=bridge:lo",
            "`lo` takes no tap: it is no bridge, or this Linux was built without bridges",
        ),
    ] {
        let ended = wire(option, &["case=answer"])?.finish()?;
        ended.expect_code(3)?.expect_error(words)?;
    }
    for (option, words) in [
        ("--tunnet=bridge:", "give the bridge's name"),
        ("--tunnet=1.2.3", "give the tap's IPv4 address"),
        ("--tunnet=1.2.3.4/31", "give a prefix"),
        (
            "--tunnet=1.2.3.4:ff:0:0:0:0:1",
            "give a MAC that is one machine's",
        ),
    ] {
        let ended = wire(option, &["case=answer"])?.finish()?;
        ended.expect_code(2)?.expect_error(words)?;
    }
    let nobody = ["--tunnet=192.168.19.1", "16", "/guests/wire", "case=answer"];
    let ended = Guest::launch_as_nobody(&nobody)?.finish()?;
    ended
        .expect_code(3)?
        .expect_error("--tunnet: not allowed to open /dev/net/tun; be root")?;
    host::wait_until_free()
}
