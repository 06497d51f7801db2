//! Runs in a browser on the same machine, kept up to date while training goes on.

use std::convert::Infallible;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::{Path as Named, Request, State as Shared};
use axum::http::{HeaderValue, StatusCode, header};
use axum::middleware::{Next, from_fn};
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{Html, IntoResponse, Response};
use axum::routing::get;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;

use crate::page::{Block, Cell, Page, Section, Table};
use crate::run::{CONFIG, Run, State, Version, is_run_name, version};
use crate::show::{date, duration};
use crate::{Error, Result};

/// How often a run folder is looked at.
const EVERY: Duration = Duration::from_secs(1);

/// A dashboard that listens and does not answer yet.
#[derive(Debug)]
pub struct Dashboard {
    folder: Arc<PathBuf>,
    listener: std::net::TcpListener,
    address: SocketAddr,
}

/// Opens the dashboard of `folder`, whose folders are runs, on the loopback address: nobody on another machine reaches it. Port 0 takes any.
///
/// # Errors
/// `folder` is no folder, or the port is taken.
pub fn serve(folder: &Path, port: u16) -> Result<Dashboard> {
    let real = folder.canonicalize().map_err(Error::io(folder, "read"))?;
    fs::read_dir(&real).map_err(Error::io(folder, "read"))?;
    let taken = |source| Error::Port { port, source };
    let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, port)).map_err(taken)?;
    listener.set_nonblocking(true).map_err(taken)?;
    let address = listener.local_addr().map_err(taken)?;
    Ok(Dashboard {
        folder: Arc::new(real),
        listener,
        address,
    })
}

impl Dashboard {
    /// Where a browser finds it.
    pub fn url(&self) -> String {
        format!("http://{}/", self.address)
    }

    /// Answers until the process ends.
    ///
    /// # Errors
    /// The operating system takes the port away.
    pub fn run(self) -> Result<()> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(Error::Server)?;
        runtime.block_on(async {
            let listener = TcpListener::from_std(self.listener).map_err(Error::Server)?;
            let app = Router::new()
                .route("/", get(index))
                .route("/events", get(index_events))
                .route("/runs/{name}", get(run))
                .route("/runs/{name}/events", get(run_events))
                .fallback(|| async { Refused::Unknown })
                .layer(from_fn(guard))
                .with_state(self.folder);
            axum::serve(listener, app).await.map_err(Error::Server)
        })
    }
}

/// Why a request is not answered.
enum Refused {
    Unknown,
    Method,
    Host,
    Broken(Error),
}

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        match self {
            Self::Unknown => (
                StatusCode::NOT_FOUND,
                "there is no such run here\n".to_owned(),
            ),
            Self::Method => (
                StatusCode::METHOD_NOT_ALLOWED,
                "this dashboard only shows\n".to_owned(),
            ),
            Self::Host => (
                StatusCode::FORBIDDEN,
                "this dashboard answers to localhost only\n".to_owned(),
            ),
            Self::Broken(e) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{e}\n")),
        }
        .into_response()
    }
}

/// Reading only, and only under this machine's own names: a page from elsewhere may point its own name at this address.
async fn guard(request: Request, next: Next) -> Response {
    let host = request
        .headers()
        .get(header::HOST)
        .and_then(|h| h.to_str().ok());
    let name = host.map(|h| h.rsplit_once(':').map_or(h, |(name, _)| name));
    if !matches!(name, Some("localhost" | "127.0.0.1")) {
        return Refused::Host.into_response();
    }
    if request.method() != axum::http::Method::GET && request.method() != axum::http::Method::HEAD {
        return Refused::Method.into_response();
    }
    let mut response = next.run(request).await;
    let headers = response.headers_mut();
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(
        header::X_CONTENT_TYPE_OPTIONS,
        HeaderValue::from_static("nosniff"),
    );
    headers.insert(header::X_FRAME_OPTIONS, HeaderValue::from_static("DENY"));
    response
}

/// The folder of a run, if it is one and really is in `root`.
fn folder_of(root: &Path, name: &str) -> Option<PathBuf> {
    if !is_run_name(name) {
        return None;
    }
    let folder = root.join(name).canonicalize().ok()?;
    (folder.parent() == Some(root) && folder.join(CONFIG).is_file()).then_some(folder)
}

/// A run of the list.
struct Listed {
    name: String,
    folder: PathBuf,
    version: Version,
}

/// The runs in `root`, the latest first.
fn runs(root: &Path) -> Vec<Listed> {
    let entries = fs::read_dir(root).into_iter().flatten().flatten();
    let mut all: Vec<_> = entries
        .filter_map(|e| {
            let name = e.file_name().into_string().ok()?;
            let folder = folder_of(root, &name)?;
            let version = version(&folder);
            Some(Listed {
                name,
                folder,
                version,
            })
        })
        .collect();
    let changed = |run: &Listed| run.version.iter().map(|v| v.1).max();
    all.sort_by(|a, b| (changed(b), &b.name).cmp(&(changed(a), &a.name)));
    all
}

fn overview(root: &Path) -> Page {
    let row = |listed: &Listed| -> Vec<Cell> {
        let link = Cell {
            text: listed.name.clone(),
            link: Some(format!("/runs/{}", listed.name)),
        };
        match Run::read_log(&listed.folder) {
            Ok(run) => vec![
                link,
                run.subtitle().into(),
                run.started().map_or("-".into(), date).into(),
                run.seconds().map_or("-".into(), duration).into(),
            ],
            Err(e) => vec![link, e.to_string().into(), "-".into(), "-".into()],
        }
    };
    let runs = runs(root);
    let is_running = |run: &&Listed| State::of(&run.folder) == State::Running;
    let working = runs.iter().filter(is_running).count();
    let blocks = match runs.is_empty() {
        true => vec![Block::Text("There is no run here yet.".into())],
        false => vec![Block::Table(Table {
            caption: String::new(),
            header: ["run", "what", "started", "time"]
                .map(str::to_owned)
                .to_vec(),
            rows: runs.iter().map(row).collect(),
        })],
    };
    Page {
        title: "Runs".into(),
        subtitle: format!("{} runs, {working} of them running", runs.len()),
        sections: vec![Section {
            title: "The latest first".into(),
            blocks,
        }],
    }
}

type Root = Shared<Arc<PathBuf>>;

async fn index(Shared(root): Root) -> std::result::Result<Html<String>, Refused> {
    aside(move || Ok(Html(overview(&root).to_live_html("/events")))).await
}

async fn run(
    Shared(root): Root,
    Named(name): Named<String>,
) -> std::result::Result<Html<String>, Refused> {
    aside(move || {
        let folder = folder_of(&root, &name).ok_or(Refused::Unknown)?;
        let run = Run::read(&folder).map_err(Refused::Broken)?;
        Ok(Html(
            run.page().to_live_html(&format!("/runs/{name}/events")),
        ))
    })
    .await
}

/// Reading and drawing wait for files, and do so beside the server.
async fn aside<T: Send + 'static>(
    work: impl FnOnce() -> std::result::Result<T, Refused> + Send + 'static,
) -> std::result::Result<T, Refused> {
    let failed = |e: tokio::task::JoinError| Err(Refused::Broken(Error::Server(e.into())));
    tokio::task::spawn_blocking(work)
        .await
        .unwrap_or_else(failed)
}

async fn index_events(
    Shared(root): Root,
) -> Sse<impl Stream<Item = std::result::Result<Event, Infallible>>> {
    let seen = root.clone();
    let version = move || {
        let all = runs(&seen).into_iter().map(|run| (run.name, run.version));
        all.collect::<Vec<_>>()
    };
    follow(version, move || Some(overview(&root)))
}

async fn run_events(
    Shared(root): Root,
    Named(name): Named<String>,
) -> std::result::Result<impl IntoResponse, Refused> {
    let folder = folder_of(&root, &name).ok_or(Refused::Unknown)?;
    let seen = folder.clone();
    // A file that is being replaced is whole a second later.
    Ok(follow(
        move || version(&seen),
        move || Some(Run::read(&folder).ok()?.page()),
    ))
}

/// Sends the page when what `version` says changes, until the browser is gone.
fn follow<V: PartialEq + Send + 'static>(
    version: impl Fn() -> V + Send + 'static,
    page: impl Fn() -> Option<Page> + Send + 'static,
) -> Sse<impl Stream<Item = std::result::Result<Event, Infallible>>> {
    let (sender, receiver) = mpsc::channel(1);
    tokio::task::spawn(async move {
        let mut last = None;
        let mut work = (version, page);
        while !sender.is_closed() {
            // The closures travel to a thread that may wait, and back.
            let looked = tokio::task::spawn_blocking(move || {
                let now = (work.0)();
                let update = match last.as_ref() == Some(&now) {
                    true => None,
                    false => (work.1)().map(|p| p.update()),
                };
                (
                    work,
                    if update.is_some() { Some(now) } else { last },
                    update,
                )
            });
            let Ok((back, now, update)) = looked.await else {
                return;
            };
            (work, last) = (back, now);
            if let Some(update) = update
                && sender
                    .send(Ok(Event::default().data(update.to_string())))
                    .await
                    .is_err()
            {
                return;
            }
            tokio::time::sleep(EVERY).await;
        }
    });
    Sse::new(ReceiverStream::new(receiver)).keep_alive(KeepAlive::default())
}
