// A broadcast server on gorilla/websocket: the hub of its chat example, with prepared messages.
//
// The path is the room; a room is a hub. Every message goes verbatim, same opcode, to all members
// of the room, the sender included. As in the example, every connection has a goroutine that reads
// and one that writes, and is closed when it falls 256 messages behind. Unlike the example, a
// message is framed once for all members (PreparedMessage), which rules out joining queued messages
// into one; and there are no pings, no timer that another server of the comparison does not have.
// Go sets TCP_NODELAY, and nothing is compressed unless told to.
//
// usage: gorilla HOST PORT
package main

import (
	"fmt"
	"log"
	"net"
	"net/http"
	"os"
	"sync"

	"github.com/gorilla/websocket"
)

const sendQueue = 256

var upgrader = websocket.Upgrader{
	ReadBufferSize:  1024,
	WriteBufferSize: 1024,
	CheckOrigin:     func(*http.Request) bool { return true },
}

type client struct {
	conn *websocket.Conn
	send chan *websocket.PreparedMessage
}

type hub struct {
	clients    map[*client]bool
	register   chan *client
	unregister chan *client
	broadcast  chan *websocket.PreparedMessage
}

func newHub() *hub {
	return &hub{
		clients:    make(map[*client]bool),
		register:   make(chan *client),
		unregister: make(chan *client),
		broadcast:  make(chan *websocket.PreparedMessage),
	}
}

func (h *hub) run() {
	for {
		select {
		case c := <-h.register:
			h.clients[c] = true
		case c := <-h.unregister:
			h.remove(c)
		case message := <-h.broadcast:
			for c := range h.clients {
				select {
				case c.send <- message:
				default:
					h.remove(c)
				}
			}
		}
	}
}

func (h *hub) remove(c *client) {
	if h.clients[c] {
		delete(h.clients, c)
		close(c.send)
	}
}

func (c *client) read(h *hub) {
	defer func() {
		h.unregister <- c
		c.conn.Close()
	}()
	for {
		kind, data, err := c.conn.ReadMessage()
		if err != nil {
			return
		}
		message, err := websocket.NewPreparedMessage(kind, data)
		if err != nil {
			return
		}
		h.broadcast <- message
	}
}

func (c *client) write() {
	defer c.conn.Close()
	for message := range c.send {
		if c.conn.WritePreparedMessage(message) != nil {
			return
		}
	}
}

type rooms struct {
	mutex sync.Mutex
	hubs  map[string]*hub
}

// Rooms are never taken away: a load generator has few.
func (r *rooms) hub(path string) *hub {
	r.mutex.Lock()
	defer r.mutex.Unlock()
	h := r.hubs[path]
	if h == nil {
		h = newHub()
		r.hubs[path] = h
		go h.run()
	}
	return h
}

func main() {
	if len(os.Args) != 3 {
		log.Fatal("usage: gorilla HOST PORT")
	}
	rooms := rooms{hubs: make(map[string]*hub)}
	http.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		conn, err := upgrader.Upgrade(w, r, nil)
		if err != nil {
			return // Upgrade has answered.
		}
		h := rooms.hub(r.URL.Path)
		c := &client{conn: conn, send: make(chan *websocket.PreparedMessage, sendQueue)}
		h.register <- c
		go c.write()
		go c.read(h)
	})
	listener, err := net.Listen("tcp", net.JoinHostPort(os.Args[1], os.Args[2]))
	if err != nil {
		log.Fatal(err)
	}
	// SIGTERM ends a Go program that does not ask for it.
	fmt.Println("listening on", listener.Addr())
	log.Fatal(http.Serve(listener, nil))
}
