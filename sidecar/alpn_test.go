package sidecar

import (
	"bytes"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"txmesh/sidecar/identity/identitytest"
	"txmesh/tests/ledger"
)

// overheard is a connection whose first bytes were read already.
type overheard struct {
	net.Conn
	io.Reader
}

func (o overheard) Read(p []byte) (int, error) { return o.Reader.Read(p) }

// deaf is one that nothing is said to.
type deaf struct{ overheard }

func (deaf) Write(p []byte) (int, error) { return len(p), nil }

// hello is a tap that tells the protocols which a client of TLS asks for by ALPN, or that it speaks no TLS.
func hello(asked chan<- string) func(net.Conn) net.Conn {
	return func(c net.Conn) net.Conn {
		var head bytes.Buffer
		said := "no TLS"
		listen := tls.Server(deaf{overheard{c, io.TeeReader(c, &head)}}, &tls.Config{
			GetConfigForClient: func(h *tls.ClientHelloInfo) (*tls.Config, error) {
				said = "TLS " + strings.Join(h.SupportedProtos, ",")
				return nil, errors.New("heard enough")
			}})
		_ = listen.Handshake() // it never comes about
		asked <- said
		return overheard{c, io.MultiReader(&head, c)}
	}
}

// newBilingual is an application that serves HTTP/1.1, HTTP/2 and gRPC at one port and tells what it was asked in.
func newBilingual(t *testing.T, asked chan<- string) string {
	t.Helper()
	rpc := grpc.NewServer(grpc.UnknownServiceHandler(func(_ any, stream grpc.ServerStream) error {
		var m wrapperspb.StringValue
		return errors.Join(stream.RecvMsg(&m), stream.SendMsg(wrapperspb.String("heard "+m.GetValue())))
	}))
	t.Cleanup(rpc.Stop)
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked <- r.Proto + " " + r.URL.Path
		if r.Header.Get("Content-Type") == "application/grpc" {
			rpc.ServeHTTP(w, r)
		}
	}))
	s.Config.Protocols = new(http.Protocols)
	s.Config.Protocols.SetHTTP1(true)
	s.Config.Protocols.SetUnencryptedHTTP2(true)
	s.Start()
	t.Cleanup(s.Close)
	return s.Listener.Addr().String()
}

// Between two sidecars HTTP/1.1 and gRPC go to the same port over TLS, and each stays what it was.
func TestProtocolsAreKeptOverCertificates(t *testing.T) {
	for _, services := range []string{"permissive", "strict"} {
		t.Run(services, func(t *testing.T) {
			offered, asked := make(chan string, 10), make(chan string, 10)
			a := identitytest.New(t, "mesh.test")
			at := a.Serve()
			board := newSwitchboard(t, hello(offered))
			callee := config(t, "bank/accounts", newBilingual(t, asked))
			proven(t, a, at, &callee)
			callee.Identity.Services, callee.Advertise = services, board.Addr().String()
			r := start(t, callee)
			board.point(r.Inbound)
			eventually(t, "the callee is ready", func() bool { return r.identity.Ready() == nil })
			caller := config(t, "bank/transfers", newService(t).address())
			proven(t, a, at, &caller)
			caller.Identity.Services, caller.Peers = services, []string{r.Peer}
			caller.Upstreams = []Upstream{{Service: "bank/accounts", Listen: "127.0.0.1:0", To: []string{board.Addr().String()}}}
			from := start(t, caller)
			eventually(t, "the caller has its certificate and knows that of the callee",
				func() bool { return from.identity.Ready() == nil && from.directory.TLSAt(board.Addr().String()) })

			res, _ := call(t, "GET", "http://"+from.Upstreams["bank/accounts"]+"/plain", "")
			if res.StatusCode != 200 {
				t.Fatalf("HTTP/1.1 = %d %v", res.StatusCode, res.Header)
			}
			got := []string{res.Proto, <-asked, <-offered}
			if diff := cmp.Diff([]string{"HTTP/1.1", "HTTP/1.1 /plain", "TLS "}, got); diff != "" {
				t.Errorf("HTTP/1.1 (-want +got):\n%s", diff)
			}
			conn, err := ledger.Dial(from.Upstreams["bank/accounts"])
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() {
				if err := conn.Close(); err != nil {
					t.Error(err)
				}
			})
			var answer wrapperspb.StringValue
			if err := conn.Invoke(t.Context(), "/bank.v1.Ledger/Echo", wrapperspb.String("x"), &answer); err != nil {
				t.Fatal(err)
			}
			got = []string{answer.GetValue(), <-asked, <-offered}
			if diff := cmp.Diff([]string{"heard x", "HTTP/2.0 /bank.v1.Ledger/Echo", "TLS h2"}, got); diff != "" {
				t.Errorf("gRPC (-want +got):\n%s", diff)
			}
			r.negotiates(shown(t, a, a.ID("bank/gateway"), time.Now().Add(-time.Minute), time.Now().Add(time.Hour)), asked)
		})
	}
}

// negotiates lets clients of other makes choose the protocol of the inbound port by ALPN, as gateways do.
func (r *running) negotiates(client *http.Client, asked <-chan string) {
	r.t.Helper()
	trip := client.Transport.(*http.Transport)
	for want, offer := range map[string][]string{"h2": {"h2", "http/1.1"}, "http/1.1": {"http/1.1"}, "": nil} {
		c := trip.TLSClientConfig.Clone()
		c.NextProtos = offer
		conn, err := tls.Dial("tcp", r.Inbound, c)
		if err != nil {
			r.t.Fatal(err)
		}
		if got := conn.ConnectionState().NegotiatedProtocol; got != want {
			r.t.Errorf("of %q the inbound port takes %q, want %q", offer, got, want)
		}
		if err := conn.Close(); err != nil {
			r.t.Error(err)
		}
	}
	trip.ForceAttemptHTTP2 = true
	res, err := client.Get("https://" + r.Inbound + "/negotiated")
	if err != nil {
		r.t.Fatal(err)
	}
	res.Body.Close()
	if got := <-asked; res.Proto != "HTTP/2.0" || got != "HTTP/2.0 /negotiated" {
		r.t.Errorf("a client that takes either is answered in %s, and the application asked %s", res.Proto, got)
	}
}
