package etcd

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"google.golang.org/grpc"
)

// member is a member of etcd. Each has a client of its own: one client for all would go on sending a third of the
// requests to a member that has halted until it notices, which takes longer than a lease.
type member struct {
	endpoint string

	mu     sync.Mutex // guards client
	client *clientv3.Client
}

// connect returns the client of a member. It is made when it is first used, since with a user that asks the member.
func (m *member) connect(e *Engine) (*clientv3.Client, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.client != nil {
		return m.client, nil
	}
	o := e.opts
	c, err := clientv3.New(clientv3.Config{
		Endpoints: []string{m.endpoint}, TLS: o.TLS, Username: o.User, Password: o.Password, Context: e.ctx,
		DialTimeout: o.Try, DialKeepAliveTime: 10 * time.Second, DialKeepAliveTimeout: 3 * time.Second,
		MaxCallSendMsgSize: o.BytesMax + 512<<10, Logger: zap.NewNop(),
		DialOptions: []grpc.DialOption{grpc.WithContextDialer(func(ctx context.Context, address string) (net.Conn, error) {
			return o.Dial(ctx, "tcp", address)
		})},
	})
	if err != nil {
		return nil, fmt.Errorf("connect to %s: %w", m.endpoint, err)
	}
	m.client = c
	return c, nil
}

// member is who is asked. It stays the same as long as it answers.
func (e *Engine) member() *member {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.members[e.current]
}

// leave asks the next one from now on, unless somebody has already left this one.
func (e *Engine) leave(m *member) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.members[e.current] == m {
		e.current = (e.current + 1) % len(e.members)
	}
}

func (e *Engine) disconnect() error {
	var errs []error
	for _, m := range e.members {
		m.mu.Lock()
		if m.client != nil {
			errs = append(errs, m.client.Close())
		}
		m.mu.Unlock()
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("close etcd: %w", err)
	}
	return nil
}
