package grpcserver

import (
	"context"
	"errors"
	"log/slog"
	"runtime/debug"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

var errInternal = status.Error(codes.Internal, "internal error")

// guard is the outermost interceptor: whatever a handler does, the process lives
// on and the client learns no more than it should.
type guard struct {
	logger *slog.Logger
}

func (g guard) unary(ctx context.Context, req any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (resp any, err error) {
	defer func() {
		if r := recover(); r != nil {
			resp, err = nil, g.panicked(ctx, info.FullMethod, r)
		}
	}()
	resp, err = handler(ctx, req)
	return resp, g.outward(ctx, info.FullMethod, err)
}

func (g guard) stream(srv any, stream grpc.ServerStream, info *grpc.StreamServerInfo, handler grpc.StreamHandler) (err error) {
	defer func() {
		if r := recover(); r != nil {
			err = g.panicked(stream.Context(), info.FullMethod, r)
		}
	}()
	return g.outward(stream.Context(), info.FullMethod, handler(srv, stream))
}

func (g guard) panicked(ctx context.Context, method string, value any) error {
	g.logger.ErrorContext(ctx, "grpc handler panicked",
		slog.String("rpc_method", method), slog.Any("panic", value), slog.String("stack", string(debug.Stack())))
	return errInternal
}

// outward is what the client sees of a handler's error.
func (g guard) outward(ctx context.Context, method string, err error) error {
	if err == nil {
		return nil
	}
	// Directly, not by errors.As: see New.
	if _, ok := err.(interface{ GRPCStatus() *status.Status }); ok {
		return err
	}
	if ended := ctx.Err(); ended != nil && errors.Is(err, ended) {
		return status.FromContextError(ended).Err()
	}
	g.logger.ErrorContext(ctx, "grpc handler failed", slog.String("rpc_method", method), slog.Any("error", err))
	return errInternal
}
