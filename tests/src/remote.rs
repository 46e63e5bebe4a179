// SPDX-License-Identifier: GPL-2.0-only

//! A small client of QEMU's debugger interface, which speaks the remote protocol of gdb.
//!
//! A packet is `$`, a text, `#` and two digits of checksum; the other side acknowledges it with
//! `+`. Numbers are hexadecimal; memory and registers come as bytes, lowest address first.

use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

/// The number that QEMU gives to RIP: it comes after the sixteen general registers.
const RIP: u32 = 16;

/// A stopped or running machine, as a debugger sees it.
#[derive(Debug)]
pub struct Debugger {
    stream: UnixStream,
    buffer: Vec<u8>,
}

impl Debugger {
    /// Connects, which stops the machine.
    ///
    /// # Errors
    ///
    /// When nobody listens there.
    pub fn connect(path: &Path) -> Result<Self> {
        let stream = UnixStream::connect(path).context("QEMU does not let a debugger in")?;
        let mut debugger = Self {
            stream,
            buffer: Vec::new(),
        };
        debugger.patience(Duration::from_secs(60))?;
        // QEMU tells of the stop by itself. What comes before this answer is that.
        debugger.send("Hg1")?;
        while debugger.receive()? != "OK" {}
        // Single registers are shown only to those who know the list of them.
        debugger.ask("qXfer:features:read:target.xml:0,ffb")?;
        Ok(debugger)
    }

    /// How long an answer may take.
    ///
    /// # Errors
    ///
    /// When the socket is broken.
    pub fn patience(&mut self, patience: Duration) -> Result<()> {
        Ok(self.stream.set_read_timeout(Some(patience))?)
    }

    /// Lets the machine run; [`Self::stopped`] waits until it stops again.
    ///
    /// # Errors
    ///
    /// When QEMU is gone.
    pub fn run(&mut self) -> Result<()> {
        self.send("c")
    }

    /// Waits until the machine stops.
    ///
    /// # Errors
    ///
    /// When it does not, in the time given.
    pub fn stopped(&mut self) -> Result<()> {
        let answer = self.receive().context("waiting for a stop")?;
        ensure!(
            answer.starts_with('T') || answer.starts_with('S'),
            "QEMU stopped with {answer:?}"
        );
        Ok(())
    }

    /// Executes one instruction.
    ///
    /// # Errors
    ///
    /// When QEMU is gone.
    pub fn step(&mut self) -> Result<()> {
        self.send("s")?;
        self.stopped()
    }

    /// Where the machine is.
    ///
    /// # Errors
    ///
    /// When QEMU does not say.
    pub fn rip(&mut self) -> Result<u64> {
        let bytes = bytes(&self.ask(&format!("p{RIP:x}"))?)?;
        let word = bytes.try_into().ok().context("RIP is not eight bytes")?;
        Ok(u64::from_le_bytes(word))
    }

    /// Up to `count` bytes of memory, by the page tables in force; fewer if not all are there.
    ///
    /// # Errors
    ///
    /// When not even one is.
    pub fn memory(&mut self, address: u64, count: usize) -> Result<Vec<u8>> {
        // What is there ends with a page.
        let rest = (0x1000 - (address & 0xfff)) as usize;
        let counts = [count, rest.min(count)];
        for count in counts {
            let answer = self.ask(&format!("m{address:x},{count:x}"))?;
            if !answer.starts_with('E') {
                return bytes(&answer);
            }
        }
        bail!("no memory at {address:#x}")
    }

    /// Sets a breakpoint, or takes it away.
    ///
    /// # Errors
    ///
    /// When QEMU refuses.
    pub fn breakpoint(&mut self, address: u64, set: bool) -> Result<()> {
        let letter = if set { 'Z' } else { 'z' };
        // 1 is a breakpoint of the hardware's: nothing is written to memory.
        let answer = self.ask(&format!("{letter}1,{address:x},1"))?;
        ensure!(answer == "OK", "a breakpoint at {address:#x}: {answer:?}");
        Ok(())
    }

    /// What QEMU's monitor says to a command.
    ///
    /// # Errors
    ///
    /// When it does not answer.
    pub fn monitor(&mut self, command: &str) -> Result<String> {
        let digits: String = command.bytes().map(|byte| format!("{byte:02x}")).collect();
        self.send(&format!("qRcmd,{digits}"))?;
        let mut said = Vec::new();
        loop {
            let answer = self
                .receive()
                .with_context(|| format!("asking {command:?}"))?;
            // Its output comes in pieces, before the answer proper.
            match answer.strip_prefix('O') {
                Some("K") => return Ok(String::from_utf8_lossy(&said).into_owned()),
                Some(piece) => said.extend(bytes(piece)?),
                None => bail!("QEMU answers {command:?} with {answer:?}"),
            }
        }
    }

    fn ask(&mut self, text: &str) -> Result<String> {
        self.send(text)?;
        self.receive().with_context(|| format!("asking {text:?}"))
    }

    fn send(&mut self, text: &str) -> Result<()> {
        self.stream
            .write_all(packet(text).as_bytes())
            .context("QEMU is gone")
    }

    /// The next packet. Acknowledgements in between are passed over, and it is acknowledged.
    fn receive(&mut self) -> Result<String> {
        loop {
            if let Some((text, used)) = unpack(&self.buffer)? {
                self.buffer.drain(..used);
                self.stream.write_all(b"+").context("QEMU is gone")?;
                return Ok(text);
            }
            let mut more = [0; 4096];
            match self.stream.read(&mut more) {
                Ok(0) => bail!("QEMU is gone"),
                Ok(n) => self.buffer.extend_from_slice(&more[..n]),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error).context("QEMU does not answer"),
            }
        }
    }
}

/// A text as a packet.
fn packet(text: &str) -> String {
    let sum = text.bytes().fold(0_u8, u8::wrapping_add);
    format!("${text}#{sum:02x}")
}

/// The first packet in some bytes, and how many bytes it ends after, if it is there as a whole.
fn unpack(buffer: &[u8]) -> Result<Option<(String, usize)>> {
    let Some(start) = buffer.iter().position(|byte| *byte == b'$') else {
        return Ok(None);
    };
    let Some(length) = buffer[start..].iter().position(|byte| *byte == b'#') else {
        return Ok(None);
    };
    let end = start + length + 3;
    let Some(sum) = buffer.get(end - 2..end) else {
        return Ok(None);
    };
    let text = str::from_utf8(&buffer[start + 1..start + length])?.to_owned();
    let (sum, expected) = (str::from_utf8(sum)?, packet(&text));
    ensure!(expected.ends_with(sum), "a damaged packet: {text:?}");
    Ok(Some((text, end)))
}

/// Bytes out of pairs of hexadecimal digits.
fn bytes(text: &str) -> Result<Vec<u8>> {
    ensure!(
        !text.starts_with('E') && text.len().is_multiple_of(2),
        "{text:?}"
    );
    text.as_bytes()
        .chunks(2)
        .map(|pair| Ok(u8::from_str_radix(str::from_utf8(pair)?, 16)?))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packets_are_packed_and_unpacked() {
        assert_eq!(packet("s"), "$s#73");
        assert_eq!(unpack(b"+$s#7").unwrap(), None);
        assert_eq!(unpack(b"+$s#73+").unwrap(), Some(("s".into(), 6)));
        assert!(unpack(b"$s#74").is_err());
    }

    #[test]
    fn bytes_come_in_pairs_of_digits() {
        assert_eq!(bytes("00ff").unwrap(), [0, 255]);
        assert!(bytes("0").is_err());
        assert!(bytes("E22").is_err());
        assert!(bytes("0x").is_err());
    }
}
