//! A window of Chromium, driven by its DevTools protocol: <https://chromedevtools.github.io/devtools-protocol/>.

use std::cell::{Cell, RefCell};
use std::io::{BufRead, BufReader};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use tempfile::TempDir;
use tungstenite::{Message, WebSocket};

/// Longer than anything here takes.
const PATIENCE: Duration = Duration::from_secs(60);

pub struct Window {
    socket: RefCell<WebSocket<TcpStream>>,
    session: RefCell<Option<String>>,
    next: Cell<u64>,
    /// What the page's console and its exceptions said.
    complaints: RefCell<Vec<String>>,
    axe: String,
    chromium: Child,
    _profile: TempDir,
}

impl Drop for Window {
    fn drop(&mut self) {
        let _ = self.chromium.kill();
        let _ = self.chromium.wait();
    }
}

impl Window {
    /// Opens `url`; `None` without a browser, which is said.
    pub fn open(url: &str, width: u32, height: u32) -> Option<Self> {
        let (Some(chromium), Some(axe)) = (
            std::env::var_os("FEWSTEP_CHROMIUM"),
            std::env::var_os("FEWSTEP_AXE"),
        ) else {
            eprintln!(
                "skipped: no browser is named; `cargo xtask setup --browser`, then `cargo xtask test`"
            );
            return None;
        };
        let profile = tempfile::tempdir().unwrap();
        let mut chromium = Command::new(chromium)
            // Containers give a process no rights to shut itself in, and little shared memory.
            .args([
                "--headless=new",
                "--no-sandbox",
                "--disable-dev-shm-usage",
                "--disable-gpu",
                "--hide-scrollbars",
                "--no-first-run",
                "--remote-debugging-port=0",
            ])
            .arg(format!("--user-data-dir={}", profile.path().display()))
            .arg(format!("--window-size={width},{height}"))
            .arg("about:blank")
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut said = BufReader::new(chromium.stderr.take().unwrap())
            .lines()
            .map_while(Result::ok);
        let address = said
            .find_map(|line| Some(line.strip_prefix("DevTools listening on ")?.to_owned()))
            .unwrap_or_else(|| panic!("Chromium named no port"));
        // It goes on to talk, and must not wait for a reader.
        std::thread::spawn(move || said.count());
        let host = address
            .trim_start_matches("ws://")
            .split('/')
            .next()
            .unwrap();
        let stream = TcpStream::connect(host).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let (socket, _) = tungstenite::client(address.as_str(), stream).unwrap();
        let window = Self {
            socket: RefCell::new(socket),
            session: RefCell::new(None),
            next: Cell::new(0),
            complaints: RefCell::default(),
            axe: std::fs::read_to_string(axe).unwrap(),
            chromium,
            _profile: profile,
        };
        let target = window.call("Target.createTarget", json!({"url": "about:blank"}));
        let session = window.call(
            "Target.attachToTarget",
            json!({"targetId": target["targetId"], "flatten": true}),
        );
        *window.session.borrow_mut() = session["sessionId"].as_str().map(str::to_owned);
        for domain in ["Page", "Runtime", "Log"] {
            window.call(&format!("{domain}.enable"), json!({}));
        }
        let metrics = json!({"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600});
        window.call("Emulation.setDeviceMetricsOverride", metrics);
        window.go(url);
        Some(window)
    }

    pub fn go(&self, url: &str) {
        let done = self.call("Page.navigate", json!({"url": url}));
        assert!(done.get("errorText").is_none(), "{done}");
        self.until(
            "it is loaded",
            &format!(
                "return document.readyState === 'complete' && location.href.startsWith({});",
                json!(url)
            ),
        );
    }

    fn call(&self, method: &str, params: Value) -> Value {
        let id = self.next.get() + 1;
        self.next.set(id);
        let mut message = json!({"id": id, "method": method, "params": params});
        if let Some(session) = self.session.borrow().as_ref() {
            message["sessionId"] = session.as_str().into();
        }
        let mut socket = self.socket.borrow_mut();
        socket.send(Message::text(message.to_string())).unwrap();
        loop {
            let Message::Text(text) = socket.read().unwrap_or_else(|e| panic!("{method}: {e}"))
            else {
                continue;
            };
            let mut answer: Value = serde_json::from_str(&text).unwrap();
            if answer["id"] == id {
                assert!(answer.get("error").is_none(), "{method}: {answer}");
                return answer["result"].take();
            }
            let params = &answer["params"];
            match answer["method"].as_str() {
                Some("Log.entryAdded") => self
                    .complaints
                    .borrow_mut()
                    .push(params["entry"].to_string()),
                Some("Runtime.exceptionThrown") => self
                    .complaints
                    .borrow_mut()
                    .push(params["exceptionDetails"].to_string()),
                Some("Runtime.consoleAPICalled")
                    if params["type"] == "error" || params["type"] == "warning" =>
                {
                    self.complaints.borrow_mut().push(params.to_string())
                }
                _ => {}
            }
        }
    }

    /// What a function with this body returns; promises are waited for.
    pub fn js(&self, body: &str) -> Value {
        let expression = format!("(async () => {{ {body} }})()");
        let mut answer = self.call(
            "Runtime.evaluate",
            json!({"expression": expression, "awaitPromise": true, "returnByValue": true}),
        );
        assert!(answer.get("exceptionDetails").is_none(), "{body}: {answer}");
        answer["result"]["value"].take()
    }

    /// Waits until the function with this body returns true.
    pub fn until(&self, what: &str, body: &str) {
        let start = Instant::now();
        while self.js(body) != json!(true) {
            assert!(
                start.elapsed() < PATIENCE,
                "{what}: {}",
                self.js("return document.body.innerText.slice(0, 500);")
            );
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// A key on what has this selector.
    pub fn key(&self, selector: &str, key: &str, code: u32) {
        self.js(&format!(
            "document.querySelector({}).focus();",
            json!(selector)
        ));
        let text = if key == "Enter" { "\r" } else { "" };
        for (kind, text) in [("keyDown", text), ("keyUp", "")] {
            self.call("Input.dispatchKeyEvent", json!({"type": kind, "key": key, "code": key, "windowsVirtualKeyCode": code, "text": text}));
        }
    }

    pub fn point_at(&self, x: f64, y: f64) {
        self.call(
            "Input.dispatchMouseEvent",
            json!({"type": "mouseMoved", "x": x, "y": y}),
        );
    }

    /// Nothing was complained of.
    pub fn quiet(&self) {
        let complaints = self.complaints.borrow();
        assert!(complaints.is_empty(), "{complaints:#?}");
    }

    /// axe-core finds nothing against WCAG 2.2 A and AA and its best practices: names, roles, contrast, keyboard.
    pub fn accessible(&self, when: &str) {
        self.call("Runtime.evaluate", json!({"expression": self.axe}));
        let found = self.js(
            "const r = await axe.run(document, {runOnly: ['wcag2a', 'wcag2aa', 'wcag21a', 'wcag21aa', 'wcag22aa', 'best-practice']});
             return r.violations.map(v => v.id + ': ' + v.nodes.map(n => n.html.slice(0, 160) + ' ' + n.failureSummary).join(' | '));",
        );
        assert_eq!(found, json!([]), "{when}");
    }

    /// The whole page, for people: below target/tmp/report-screenshots.
    pub fn screenshot(&self, name: &str) {
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("report-screenshots");
        std::fs::create_dir_all(&folder).unwrap();
        let picture = self.call(
            "Page.captureScreenshot",
            json!({"format": "png", "captureBeyondViewport": true}),
        );
        let png = STANDARD.decode(picture["data"].as_str().unwrap()).unwrap();
        std::fs::write(folder.join(format!("{name}.png")), png).unwrap();
    }

    /// The page as a printer gets it.
    pub fn pdf(&self) -> Vec<u8> {
        let pdf = self.call("Page.printToPDF", json!({}));
        STANDARD.decode(pdf["data"].as_str().unwrap()).unwrap()
    }
}
