//! Reads the socket, frames PDUs, answers 0000, and writes; with `durable` as our service does at full durability,
//! but without outbox, checks or records. The practical limit that benches compare with.
//!
//! `storescp-sink PORT FOLDER write|durable MAX_PDU_LENGTH`.

use std::error::Error;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};

use storescp_core::uid::trim_padding;
use storescp_core::wire::command::{Command, Operation, Response};
use storescp_core::wire::pdu::{self, PduHeader, PduType, HEADER_BYTES};

const READ_BYTES: usize = 256 * 1024;
const WRITE_BYTES: usize = 1 << 20;

type Outcome<T> = Result<T, Box<dyn Error + Send + Sync>>;

fn main() -> Outcome<()> {
    let arguments: Vec<String> = std::env::args().collect();
    let [_, port, folder, mode, max_pdu_length] = arguments.as_slice() else {
        return Err("usage: storescp-sink PORT FOLDER write|durable MAX_PDU_LENGTH".into());
    };
    let (folder, durable) = (PathBuf::from(folder), mode == "durable");
    let max_pdu_length = max_pdu_length.parse()?;
    let listener = TcpListener::bind(("127.0.0.1", port.parse()?))?;
    for stream in listener.incoming() {
        let (stream, folder) = (stream?, folder.clone());
        std::thread::spawn(move || {
            if let Err(error) = serve(stream, &folder, durable, max_pdu_length) {
                eprintln!("{error}");
            }
        });
    }
    Ok(())
}

/// Large reads, handed out in pieces.
struct Reader {
    stream: TcpStream,
    buffer: Vec<u8>,
    from: usize,
    to: usize,
}

impl Reader {
    /// At most `most` bytes, at least one.
    fn some(&mut self, most: usize) -> io::Result<&[u8]> {
        if self.from == self.to {
            self.from = 0;
            self.to = self.stream.read(&mut self.buffer)?;
            if self.to == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        let end = self.to.min(self.from.saturating_add(most));
        let piece = self.buffer.get(self.from..end).unwrap_or_default();
        self.from = end;
        Ok(piece)
    }

    fn exact(&mut self, count: usize) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::with_capacity(count);
        while bytes.len() < count {
            let missing = count - bytes.len();
            let piece = self.some(missing)?;
            bytes.extend_from_slice(piece);
        }
        Ok(bytes)
    }
}

fn serve(stream: TcpStream, folder: &Path, durable: bool, max_pdu_length: u32) -> Outcome<()> {
    stream.set_nodelay(true)?;
    let mut out = stream.try_clone()?;
    let mut reader = Reader {
        stream,
        buffer: vec![0; READ_BYTES],
        from: 0,
        to: 0,
    };
    let (mut command, mut data) = (Vec::new(), Vec::with_capacity(WRITE_BYTES));
    let mut request: Option<Request> = None;
    let mut file: Option<(PathBuf, File)> = None;
    loop {
        let Ok(head) = reader.exact(HEADER_BYTES) else {
            return Ok(());
        };
        let head: [u8; HEADER_BYTES] = head.as_slice().try_into()?;
        let header = PduHeader::parse(head);
        let mut left = usize::try_from(header.length)?;
        match header.pdu_type {
            PduType::AssociateRq => out.write_all(&associate_ac(&reader.exact(left)?, max_pdu_length))?,
            PduType::ReleaseRq => {
                reader.exact(left)?;
                out.write_all(&pdu::RELEASE_RP)?;
            }
            PduType::PData => {
                while left > 0 {
                    let pdv = reader.exact(6)?;
                    let [a, b, c, d, context, control] = *pdv.as_slice() else {
                        return Err("a short PDV".into());
                    };
                    let mut length = usize::try_from(u32::from_be_bytes([a, b, c, d]))?.saturating_sub(2);
                    left = left.saturating_sub(6 + length);
                    while length > 0 {
                        let piece = reader.some(length)?;
                        length -= piece.len();
                        if control & 1 == 1 {
                            command.extend_from_slice(piece);
                        } else {
                            data.extend_from_slice(piece);
                        }
                        if data.len() >= WRITE_BYTES {
                            write(&mut file, request.as_ref(), folder, durable, &mut data)?;
                        }
                    }
                    if control & 3 == 3 {
                        request = Some(Request::of(&command)?);
                        command.clear();
                    }
                    if control & 3 == 2 {
                        write(&mut file, request.as_ref(), folder, durable, &mut data)?;
                        finish(file.take(), folder, durable)?;
                        let asked = request.take().ok_or("data before its command")?;
                        let response = Response {
                            operation: Operation::CStore,
                            message_id: asked.message_id,
                            sop_class_uid: None,
                            sop_instance_uid: None,
                            status: 0,
                            error_comment: None,
                        };
                        out.write_all(&pdu::wrap_command(context, &response.encode(), 0))?;
                    }
                }
            }
            _ => return Ok(()),
        }
    }
}

/// What is needed of a C-STORE-RQ.
struct Request {
    message_id: u16,
    sop_instance_uid: String,
}

impl Request {
    fn of(command: &[u8]) -> Outcome<Self> {
        let command = Command::parse(command, None).map_err(|_| "not a command")?;
        let uid = trim_padding(command.affected_sop_instance_uid);
        Ok(Self {
            message_id: command.message_id,
            sop_instance_uid: String::from_utf8_lossy(uid).into_owned(),
        })
    }
}

fn write(
    file: &mut Option<(PathBuf, File)>,
    request: Option<&Request>,
    folder: &Path,
    durable: bool,
    data: &mut Vec<u8>,
) -> Outcome<()> {
    if file.is_none() {
        let asked = request.ok_or("data before its command")?;
        let uid = &asked.sop_instance_uid;
        let name = if durable {
            format!("{uid}.part")
        } else {
            format!("{uid}.dcm")
        };
        let path = folder.join(name);
        *file = Some((path.clone(), File::create(path)?));
    }
    if let Some((_, file)) = file {
        file.write_all(data)?;
    }
    data.clear();
    Ok(())
}

fn finish(file: Option<(PathBuf, File)>, folder: &Path, durable: bool) -> Outcome<()> {
    let (path, file) = file.ok_or("no file")?;
    if durable {
        file.sync_data()?;
        fs::rename(&path, path.with_extension("dcm"))?;
        File::open(folder)?.sync_all()?;
    }
    Ok(())
}

/// Accepts every context with its first transfer syntax (PS3.8 9.3.3).
fn associate_ac(request: &[u8], max_pdu_length: u32) -> Vec<u8> {
    let mut body = request.get(..68).unwrap_or_default().to_vec();
    item(&mut body, 0x10, b"1.2.840.10008.3.1.1.1");
    let mut rest = request.get(68..).unwrap_or_default();
    while let Some((kind, value, next)) = next_item(rest) {
        if kind == 0x20 {
            let mut inner = vec![value.first().copied().unwrap_or(1), 0, 0, 0];
            let mut items = value.get(4..).unwrap_or_default();
            while let Some((kind, value, next)) = next_item(items) {
                if kind == 0x40 {
                    item(&mut inner, 0x40, value);
                    break;
                }
                items = next;
            }
            item(&mut body, 0x21, &inner);
        }
        rest = next;
    }
    let mut user = Vec::new();
    item(&mut user, 0x51, &max_pdu_length.to_be_bytes());
    item(&mut user, 0x52, b"1.2.3.4");
    item(&mut body, 0x50, &user);
    let mut pdu = vec![0x02, 0];
    pdu.extend_from_slice(&u32::try_from(body.len()).unwrap_or(0).to_be_bytes());
    pdu.extend_from_slice(&body);
    pdu
}

fn next_item(bytes: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (&[kind, _, high, low], after) = bytes.split_first_chunk::<4>()?;
    let (value, next) = after.split_at_checked(usize::from(u16::from_be_bytes([high, low])))?;
    Some((kind, value, next))
}

fn item(out: &mut Vec<u8>, kind: u8, body: &[u8]) {
    out.extend_from_slice(&[kind, 0]);
    out.extend_from_slice(&u16::try_from(body.len()).unwrap_or(u16::MAX).to_be_bytes());
    out.extend_from_slice(body);
}
