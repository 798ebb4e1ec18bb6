// A client by the interface that browsers have (https://websockets.spec.whatwg.org/), which the
// page, Node.js and ws share. Names nothing outside of itself: the page gets it as text.
export class Standard {
  /** Opens connections of this class. */
  constructor(WebSocket) {
    this.WebSocket = WebSocket;
  }

  make(url, subprotocols) {
    return new this.WebSocket(url, subprotocols);
  }

  open({ url, subprotocols, compression }) {
    const socket = this.socket = this.make(url, subprotocols, compression);
    const came = this.came = [];
    const hear = what => { came.push(what); this.wake?.(); };
    const base64 = bytes => btoa(bytes.reduce((text, byte) => text + String.fromCharCode(byte), ''));
    socket.binaryType = 'arraybuffer';
    socket.onmessage = ({ data }) =>
      hear(typeof data === 'string' ? { text: data } : { binary: base64(new Uint8Array(data)) });
    socket.onclose = ({ code, reason }) => hear({ close: [code, reason] });
    return new Promise(resolve => {
      socket.onopen = () => resolve({ subprotocol: socket.protocol, extensions: socket.extensions });
      socket.onerror = () => resolve({ refused: true });
    });
  }

  send(message) {
    this.socket.send(this.data(message));
  }

  data({ text, binary }) {
    return text ?? Uint8Array.from(atob(binary), character => character.charCodeAt(0));
  }

  async receive() {
    while (this.came.length === 0) await new Promise(resolve => { this.wake = resolve; });
    return this.came.shift();
  }

  async close({ code, reason }) {
    this.socket.close(code, reason);
    for (;;) {
      const what = await this.receive();
      if (what.close) return what;
    }
  }
}
