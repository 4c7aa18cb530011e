package dtm

import (
	"context"
	"net"
	"net/http"

	"github.com/valyala/fasthttp"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/peer"

	"txmesh/policies"
)

// Asker is who asks for what, as far as policies speak of it.
type Asker struct {
	Caller string // SPIFFE id that the connection proves; empty: none
	Method string
	Path   string
}

type askerKey struct{}

// may holds who asks to the access policies: one of the acts must be allowed. It stands in the operations and not before
// the endpoints, because three protocols lead there.
func (s *Service) may(ctx context.Context, oneOf ...policies.Act) error {
	if s.May == nil {
		return nil
	}
	a, _ := ctx.Value(askerKey{}).(Asker) // none: nobody, who may what everybody may
	return s.May(a, oneOf...)
}

// mayLook is may for who reads what transactions hold.
func (s *Service) mayLook(ctx context.Context) error {
	return s.may(ctx, policies.Operate, policies.Decide)
}

// maySubmit is may for submit: it begins what was not prepared, and all but a saga is committed by it. A workflow was
// prepared.
func (s *Service) maySubmit(ctx context.Context, t *transaction) error {
	if t.Type != typeWorkflow {
		if err := s.may(ctx, policies.Begin); err != nil {
			return err
		}
	}
	if t.Type == typeSaga {
		return nil
	}
	return s.may(ctx, policies.Decide)
}

// callerOf is the SPIFFE id that a connection proves; empty: none.
func callerOf(c net.Conn) string {
	if p, ok := c.(interface{ Caller() string }); ok {
		return p.Caller()
	}
	return ""
}

// askedHTTP is the context of a request.
func askedHTTP(r *fasthttp.RequestCtx) context.Context {
	return context.WithValue(context.Background(), askerKey{}, Asker{callerOf(r.Conn()), string(r.Method()), string(r.Path())})
}

// askedGRPC is the context of a call.
func askedGRPC(ctx context.Context, method string) context.Context {
	a := Asker{Method: http.MethodPost, Path: method}
	if p, ok := peer.FromContext(ctx); ok {
		if c, ok := p.AuthInfo.(onConn); ok {
			a.Caller = callerOf(c.conn)
		}
	}
	return context.WithValue(ctx, askerKey{}, a)
}

// asAccepted are credentials of a server whose listener has made TLS of its connections: calls can ask them for the caller.
type asAccepted struct {
	credentials.TransportCredentials
}

func newAsAccepted() credentials.TransportCredentials { return asAccepted{insecure.NewCredentials()} }

// ServerHandshake implements credentials.TransportCredentials.
func (asAccepted) ServerHandshake(c net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return c, onConn{conn: c}, nil
}

// Clone implements credentials.TransportCredentials.
func (a asAccepted) Clone() credentials.TransportCredentials { return a }

// onConn lets calls find their connection.
type onConn struct {
	credentials.CommonAuthInfo
	conn net.Conn
}

// AuthType implements credentials.AuthInfo.
func (onConn) AuthType() string { return "as accepted" }
